"""What fails for long: the storage, or the descriptors. The event loop waits for better times without work and in few words."""

import os
import resource
import shutil
import subprocess
import time

import pytest
from mqtt_wire import Wire, connected, tcp
from support import Server, processor_seconds, unique, wait_until

# A disk whose syncs fail while there is a file.
SHIM = """
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <unistd.h>
static int fails(void) {{ return access("{flag}", F_OK) == 0; }}
int fdatasync(int file) {{
    if (fails()) {{ errno = EIO; return -1; }}
    return ((int (*)(int))dlsym(RTLD_NEXT, "fdatasync"))(file);
}}
int fsync(int file) {{
    if (fails()) {{ errno = EIO; return -1; }}
    return ((int (*)(int))dlsym(RTLD_NEXT, "fsync"))(file);
}}
int sync_file_range(int file, long at, long count, unsigned flags) {{ return 0; }}
"""
WATCHED = 2  # seconds
LINES = 20  # of the log, at most, in them


@pytest.fixture
def failing(binary, tmp_path):
    """A server whose disk fails once the second value is called."""
    if shutil.which("cc") is None:
        pytest.skip("a disk that fails: cc is missing (apt-get install gcc)")
    library, script, flag = tmp_path / "fails.so", tmp_path / "fails", tmp_path / "now"
    compile = ["cc", "-shared", "-fPIC", "-x", "c", "-", "-o", str(library), "-ldl"]
    subprocess.run(compile, input=SHIM.format(flag=flag), text=True, check=True)
    script.write_text(f'#!/bin/sh\nexec env LD_PRELOAD="{library}" "{binary}" "$@"\n')
    script.chmod(0o755)
    (tmp_path / "data").mkdir()
    server = Server(str(script), tmp_path / "data", []).start()
    try:
        yield server, flag.touch
    finally:
        server.kill9()


def lines(server):
    return server.log.read_text(errors="replace").count("\n")


def watched(server):
    """The part of a processor and the lines of the log that it takes while nothing is asked of it."""
    before, since, said = processor_seconds(server), time.monotonic(), lines(server)
    time.sleep(WATCHED)
    return (processor_seconds(server) - before) / (time.monotonic() - since), lines(server) - said


def test_a_disk_that_has_failed_costs_neither_time_nor_log(failing):
    server, fail = failing
    server.sql("DROP SOURCE default")
    topic = unique()
    reader = connected(server.address("mqtt"), client_id="reader", props={"session_expiry": 600})
    reader.subscribe((topic, 1), (f"{topic}/2", 2))
    sender = connected(server.address("mqtt"))
    sender.publish(topic, "1", 1)
    message = reader.message(acknowledge=False)
    fail()
    # Its record cannot be written, now or later.
    reader.acknowledge(message)
    wait_until(lambda: server.http("GET", "/ready").status == 503, "the end of the storage")
    busy, said = watched(server)
    assert said <= LINES, server.log_tail()
    assert busy < 0.5, f"{busy:.0%} of a processor for nothing"
    before = lines(server)
    # Nobody is let in, and that is said once.
    for _ in range(2 * LINES):
        with Wire(server.address("mqtt")) as wire:
            assert wire.connect(unique("late"), None).reason == 0x88
    assert lines(server) - before <= LINES, server.log_tail()
    assert server.running


def test_descriptors_that_are_used_up_do_not_fill_the_log(make_server):
    server = make_server()
    with connected(server.address("mqtt")) as client:
        limits = resource.prlimit(server.process.pid, resource.RLIMIT_NOFILE)
        count = len(os.listdir(f"/proc/{server.process.pid}/fd")) + 10
        resource.prlimit(server.process.pid, resource.RLIMIT_NOFILE, (count, limits[1]))
        sockets = [tcp(server.address("mqtt")) for _ in range(30)]
        before = lines(server)
        for _ in range(300):
            client.ping()
        assert lines(server) - before <= LINES
        assert "cannot accept an MQTT connection" in server.log_tail()
        resource.prlimit(server.process.pid, resource.RLIMIT_NOFILE, limits)
        for made in sockets:
            made.close()
        with connected(server.address("mqtt")) as other:
            other.ping()
