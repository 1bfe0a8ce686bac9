"""A file system of its own on a loop device, whose power can be cut: what was not synced is gone, as after a real cut.

The ioctl stops the file system at once; every later call fails, and the next mount recovers what is on the device.
"""

import contextlib
import fcntl
import os
import shutil
import struct
import subprocess
import time
from pathlib import Path

import pytest

# _IOR('X', 125, __u32): FS_IOC_SHUTDOWN of ext4 is XFS_IOC_GOINGDOWN of XFS.
SHUTDOWN = 0x8004587D
# What happens to the journal first: everything is written out; nothing is, as in a power cut.
DEFAULT, NOLOGFLUSH = 0, 2
CUTS = {"default": DEFAULT, "nologflush": NOLOGFLUSH}

MAKE = {
    "ext4": ("mkfs.ext4", "e2fsprogs", ["-q", "-F"]),
    "xfs": ("mkfs.xfs", "xfsprogs", ["-q", "-f"]),
}
BYTES = 4 << 30  # sparse
UNMOUNT_SECONDS = 30


class FileSystem:
    """A mounted file system of a `kind`; skips the test, and says why, where this machine cannot make it."""

    def __init__(self, kind, directory, size=BYTES):
        self.kind = kind
        if os.geteuid() != 0:
            pytest.skip(f"power cuts on {kind}: mounting a file system takes root")
        make, package, flags = MAKE[kind]
        for program, of in ((make, package), ("losetup", "mount"), ("mount", "mount"), ("umount", "mount")):
            if shutil.which(program) is None:
                pytest.skip(f"power cuts on {kind}: {program} is missing (apt-get install {of})")
        self.image, self.mountpoint = Path(directory) / f"{kind}.img", Path(directory) / kind
        self.mountpoint.mkdir()
        with self.image.open("wb") as image:
            image.truncate(size)
        subprocess.run([make, *flags, str(self.image)], check=True, capture_output=True)
        self.mounted = False
        done = self._mount()
        if done.returncode:
            self.image.unlink()
            pytest.skip(f"power cuts on {kind}: no loop device, or a kernel without it: {done.stderr.strip()}")

    def _mount(self):
        # Barriers stay on, as by default.
        command = ["mount", "-t", self.kind, "-o", "loop", str(self.image), str(self.mountpoint)]
        done = subprocess.run(command, capture_output=True, text=True)
        self.mounted = done.returncode == 0
        return done

    def cut_power(self, how=NOLOGFLUSH):
        """Stops the file system. What was told to be durable before this call is."""
        handle = os.open(self.mountpoint, os.O_RDONLY)
        try:
            fcntl.ioctl(handle, SHUTDOWN, struct.pack("I", how))
        finally:
            os.close(handle)

    def remount(self):
        """Nobody has a file of it open any more; mounting it recovers it."""
        self.unmount()
        done = self._mount()
        assert self.mounted, f"{self.kind} does not mount again: {done.stderr}"

    def unmount(self):
        if not self.mounted:
            return
        deadline = time.monotonic() + UNMOUNT_SECONDS
        while subprocess.run(["umount", str(self.mountpoint)], capture_output=True).returncode:
            # The kernel lets go of a dead process's files when it comes to it.
            assert time.monotonic() < deadline, f"{self.mountpoint} is busy"
            time.sleep(0.01)
        self.mounted = False

    def close(self):
        self.unmount()
        self.image.unlink(missing_ok=True)


@contextlib.contextmanager
def filesystem(kind, directory, size=BYTES):
    made = FileSystem(kind, directory, size)
    try:
        yield made
    finally:
        made.close()
