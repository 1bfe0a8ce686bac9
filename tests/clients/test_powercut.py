"""The power goes under load, again and again, on ext4 and XFS: every acknowledged row is there after the restart, no
QoS 2 message is there twice, what was deleted stays deleted, and the server starts by itself.

The file system is stopped as by a power cut (`filesystem.py`), the server killed, the file system mounted again. Needs
root and loop devices. SONDE_TORTURE_CYCLES sets the number of cuts on each file system, SONDE_TORTURE_SEED repeats
their moments.
"""

import contextlib
import os
import random
import shutil
import subprocess
import tempfile
import time
from pathlib import Path

import pytest
from filesystem import CUTS, NOLOGFLUSH, filesystem
from load import Load, check_files
from support import Server

CYCLES = int(os.environ.get("SONDE_TORTURE_CYCLES", 3))
SEED = int(os.environ.get("SONDE_TORTURE_SEED", 0)) or random.randrange(1, 1 << 32)
MEMORY = Path("/dev/shm")

pytestmark = pytest.mark.filterwarnings("error::pytest.PytestUnhandledThreadExceptionWarning")


@pytest.fixture
def workshop():
    """A directory for an image, in memory where there is room: the device loses nothing, the file system does."""
    room = MEMORY.is_dir() and shutil.disk_usage(MEMORY).free > 6 << 30
    with tempfile.TemporaryDirectory(prefix="sonde-power-", dir=MEMORY if room else None) as directory:
        yield Path(directory)


@contextlib.contextmanager
def server_on(disk, workshop, binary):
    """A server whose data are on a file system that is to lose power."""
    server = Server(binary, disk.mountpoint, ["memory.limit=512MiB"])
    # What the server says is no part of what the power takes.
    server.log = workshop / "server.log"
    server.start()
    try:
        yield server
    finally:
        if server.running:
            server.kill9()


@pytest.mark.parametrize("kind", ["ext4", "xfs"])
def test_powercut_under_load(binary, workshop, kind):
    print(f"SONDE_TORTURE_SEED={SEED}")
    with filesystem(kind, workshop) as disk, server_on(disk, workshop, binary) as server:
        run(server, disk, random.Random(SEED), list(CUTS.values()), CYCLES)


# What a server calls that does not sync; of a file, or of a directory.
SHIMS = {
    "files": "int fdatasync(int file) { return 0; }",
    "nothing": "int fsync(int file) { return 0; } int fdatasync(int file) { return 0; }",
}


@pytest.mark.parametrize("shim", SHIMS)
@pytest.mark.parametrize("kind", ["ext4", "xfs"])
def test_powercut_shows_a_server_that_does_not_sync(binary, workshop, kind, shim):
    """The rig can fail: it notices within a few cuts."""
    if shutil.which("cc") is None:
        pytest.skip("a server that does not sync: cc is missing (apt-get install gcc)")
    library, script = workshop / "nosync.so", workshop / "nosync"
    compile = ["cc", "-shared", "-fPIC", "-x", "c", "-", "-o", str(library)]
    subprocess.run(compile, input=SHIMS[shim], text=True, check=True)
    script.write_text(f'#!/bin/sh\nexec env LD_PRELOAD="{library}" "{binary}" "$@"\n')
    script.chmod(0o755)
    with filesystem(kind, workshop) as disk, pytest.raises((AssertionError, pytest.fail.Exception)) as noticed:
        with server_on(disk, workshop, str(script)) as server:
            run(server, disk, random.Random(SEED), [NOLOGFLUSH], 20)
    print(f"{kind}, {shim}: {str(noticed.value)[:200]}")


def run(server, disk, moments, cuts, cycles):
    load = Load(server, SEED)
    began, spent = time.monotonic(), {"load": 0.0, "cut": 0.0, "start": 0.0, "check": 0.0}
    for cycle in range(cycles):
        clock = time.monotonic()

        def passed(what):
            nonlocal clock
            spent[what] += time.monotonic() - clock
            clock = time.monotonic()

        load.start()
        time.sleep(moments.uniform(0, 0.5))  # waits for nothing: the moment of the cut
        # What is acknowledged from here on may come from a machine that is going down.
        load.mark()
        passed("load")
        disk.cut_power(moments.choice(cuts))
        server.kill9()
        load.wait_closed()
        disk.remount()
        passed("cut")
        server.start()
        passed("start")
        load.check()
        if cycle % max(1, cycles // 50) == 0:
            check_files(server)
        passed("check")
    seconds = time.monotonic() - began
    print(f"{disk.kind}: {cycles} cuts, {seconds / cycles:.2f} s each: ", end="")
    print(", ".join(f"{what} {part / cycles:.2f} s" for what, part in spent.items()))

    load.start()
    load.finish()
    print(dict(load.done))
    server.stop()
