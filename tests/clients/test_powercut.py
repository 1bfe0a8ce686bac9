"""The power goes under load, again and again, on ext4 and XFS: every acknowledged row is there after the restart, no QoS 2
message is there twice, what was deleted stays deleted, and the server starts by itself.

The file system is stopped as by a power cut (`filesystem.py`), the server killed, the file system mounted again. Needs
root and loop devices. SONDE_TORTURE_CYCLES sets the number of cuts on each file system, SONDE_TORTURE_SEED repeats their
moments.
"""

import os
import random
import shutil
import tempfile
import time
from functools import partial
from pathlib import Path

import pytest
from filesystem import CUTS, filesystem
from load import Administrator, Changer, HttpWriter, Publisher, check, check_files, goes_on
from support import Server, wait_until

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
    writers = [Publisher(server, 1, timed=True), Publisher(server, 2, timed=False), HttpWriter(server)]
    changer = Changer(server, SEED)
    changer.create()
    everybody = [*writers, changer, Administrator(server, [writer.table for writer in (*writers, changer)], SEED)]
    began, spent = time.monotonic(), {"load": 0.0, "cut": 0.0, "start": 0.0, "check": 0.0}
    for cycle in range(CYCLES):
        clock = time.monotonic()

        def passed(what):
            nonlocal clock
            spent[what] += time.monotonic() - clock
            clock = time.monotonic()

        before = [len(writer.acknowledged) for writer in everybody]
        for writer in everybody:
            writer.connect()
        for writer, count in zip(everybody, before, strict=True):
            wait_until(partial(goes_on, writer, count), f"{writer.table}: an acknowledgement")
        time.sleep(moments.uniform(0, 0.5))  # waits for nothing: the moment of the cut
        how = moments.choice(list(CUTS))
        # What is acknowledged from here on may come from a machine that is going down.
        for writer in everybody:
            writer.mark()
        passed("load")
        disk.cut_power(CUTS[how])
        server.kill9()
        for writer in everybody:
            writer.wait_closed()
        disk.remount()
        passed("cut")
        server.start()
        passed("start")
        for writer in writers:
            check(server, writer)
        changer.check()
        if cycle % max(1, CYCLES // 50) == 0:
            check_files(server)
        passed("check")
    seconds = time.monotonic() - began
    print(f"{disk.kind}: {CYCLES} cuts, {seconds / CYCLES:.2f} s each: ", end="")
    print(", ".join(f"{what} {part / CYCLES:.2f} s" for what, part in spent.items()))

    for writer in everybody:
        writer.connect()
    for writer in everybody:
        writer.finish()
    for writer in writers:
        stored = check(server, writer)
        assert set(range(writer.sent)) - writer.uncertain <= stored <= set(range(writer.sent))
        print(f"{writer.table}: {len(writer.acknowledged)} rows, {len(writer.uncertain)} uncertain")
    changer.check()
    server.stop()
