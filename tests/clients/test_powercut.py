"""The power goes under load, again and again, on ext4 and XFS: every acknowledged row is there after the restart, no
QoS 2 message is there twice, what was deleted stays deleted, and the server starts by itself.

The file system is stopped as by a power cut (`filesystem.py`), the server killed, the file system mounted again. Needs
root and loop devices. SONDE_TORTURE_CYCLES sets the number of cuts on each file system, SONDE_TORTURE_SEED repeats
their moments.
"""

import os
import random
import shutil
import tempfile
import time
from pathlib import Path

import pytest
from filesystem import CUTS, filesystem
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


@pytest.mark.parametrize("kind", ["ext4", "xfs"])
def test_powercut_under_load(binary, workshop, kind):
    print(f"SONDE_TORTURE_SEED={SEED}")
    moments = random.Random(SEED)
    with filesystem(kind, workshop) as disk:
        server = Server(binary, disk.mountpoint, ["memory.limit=512MiB"])
        # What the server says is no part of what the power takes.
        server.log = workshop / "server.log"
        server.start()
        try:
            run(server, disk, moments)
        finally:
            if server.running:
                server.kill9()


def run(server, disk, moments):
    load = Load(server, SEED)
    began, spent = time.monotonic(), {"load": 0.0, "cut": 0.0, "start": 0.0, "check": 0.0}
    for cycle in range(CYCLES):
        clock = time.monotonic()

        def passed(what):
            nonlocal clock
            spent[what] += time.monotonic() - clock
            clock = time.monotonic()

        load.start()
        time.sleep(moments.uniform(0, 0.5))  # waits for nothing: the moment of the cut
        how = moments.choice(list(CUTS))
        # What is acknowledged from here on may come from a machine that is going down.
        load.mark()
        passed("load")
        disk.cut_power(CUTS[how])
        server.kill9()
        load.wait_closed()
        disk.remount()
        passed("cut")
        server.start()
        passed("start")
        load.check()
        if cycle % max(1, CYCLES // 50) == 0:
            check_files(server)
        passed("check")
    seconds = time.monotonic() - began
    print(f"{disk.kind}: {CYCLES} cuts, {seconds / CYCLES:.2f} s each: ", end="")
    print(", ".join(f"{what} {part / CYCLES:.2f} s" for what, part in spent.items()))

    load.start()
    load.finish()
    print(dict(load.done))
    server.stop()
