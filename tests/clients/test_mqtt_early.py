"""`mqtt.early`: what subscribers see before it is stored, and what they do not, on a disk that is slow."""

import shutil
import subprocess
import time

import pytest
from paho_client import Client
from support import Server, wait_until

# A disk that takes its time for every sync.
SYNC_SECONDS = 1
SHIM = f"""
#define _GNU_SOURCE
#include <dlfcn.h>
#include <unistd.h>
int fdatasync(int file) {{
    sleep({SYNC_SECONDS});
    return ((int (*)(int))dlsym(RTLD_NEXT, "fdatasync"))(file);
}}
"""


@pytest.fixture(scope="module")
def slow(binary, tmp_path_factory):
    """A server whose disk is slow, and for which topics below `alarm` are early."""
    if shutil.which("cc") is None:
        pytest.skip("a disk that is slow: cc is missing (apt-get install gcc)")
    here = tmp_path_factory.mktemp("slow")
    library, script = here / "slow.so", here / "slow"
    compile = ["cc", "-shared", "-fPIC", "-x", "c", "-", "-o", str(library), "-ldl"]
    subprocess.run(compile, input=SHIM, text=True, check=True)
    script.write_text(f'#!/bin/sh\nexec env LD_PRELOAD="{library}" "{binary}" "$@"\n')
    script.chmod(0o755)
    (here / "data").mkdir()
    server = Server(str(script), here / "data", ["mqtt.early=alarm/#, site/+/stop"])
    server.start()
    try:
        yield server
    finally:
        server.kill9()


@pytest.mark.parametrize("topic, early", [("alarm/fire", True), ("site/a/stop", True), ("site/a/temperature", False)])
def test_early_messages_do_not_wait_for_the_disk(slow, topic, early):
    with Client(slow) as subscriber, Client(slow) as publisher:
        publisher.publish(topic, '{"value": 0}')  # makes the table, for which everybody waits
        subscriber.subscribe(topic, 1)
        began = time.monotonic()
        sent = publisher.paho.publish(topic, '{"value": 1}', 1)
        message = subscriber.messages.get(timeout=20)
        passed = time.monotonic() - began
        assert (message.topic, message.payload) == (topic, b'{"value": 1}')
        assert (passed < SYNC_SECONDS) == early, passed
        if early:
            assert not sent.is_published(), "acknowledged before it can have been stored"
        wait_until(sent.is_published, "the acknowledgement")
        assert subscriber.messages.empty(), "and it comes once"


def test_sessions_that_are_kept_get_what_is_stored(slow):
    with Client(slow, durable=True) as subscriber, Client(slow) as publisher:
        publisher.publish("alarm/fire", '{"value": 0}')
        subscriber.subscribe("alarm/#", 1)
        began = time.monotonic()
        publisher.paho.publish("alarm/fire", '{"value": 1}', 1)
        subscriber.messages.get(timeout=20)
        assert time.monotonic() - began >= SYNC_SECONDS


def test_what_is_no_filter_is_refused(binary, tmp_path):
    command = [binary, "serve", "--data-dir", str(tmp_path), "--set", "mqtt.early=alarm/#/x"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode != 0 and "mqtt.early" in done.stderr and "alarm/#/x" in done.stderr, done.stderr
