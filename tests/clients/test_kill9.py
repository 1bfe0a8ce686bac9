"""kill -9 under load, again and again: every acknowledged row is there after the restart, and none is there twice; what
was deleted stays deleted, what was updated stays so; files and descriptors do not grow.

SONDE_TORTURE_CYCLES sets the number of kills, SONDE_TORTURE_SEED repeats a run's moments and statements.
"""

import json
import os
import random
import time

import pytest
from load import Load, check_files, descriptors
from paho_client import Client
from support import TIME_S

CYCLES = int(os.environ.get("SONDE_TORTURE_CYCLES", 5))
SEED = int(os.environ.get("SONDE_TORTURE_SEED", 0)) or random.randrange(1, 1 << 32)
EXTRA_DESCRIPTORS = 24  # of chunks, segments and connections that come and go

# What a writer's thread did not expect is a failure, not a warning.
pytestmark = pytest.mark.filterwarnings("error::pytest.PytestUnhandledThreadExceptionWarning")


def test_kill9_under_load(make_server):
    print(f"SONDE_TORTURE_SEED={SEED}")
    moments = random.Random(SEED)
    server = make_server()
    load = Load(server, SEED)
    first, began = descriptors(server), time.monotonic()
    for cycle in range(CYCLES):
        load.start()
        time.sleep(moments.uniform(0, 1))  # waits for nothing: the moment of the kill
        server.kill9()
        load.wait_closed()
        server.restart()
        load.check()
        # Takes a moment of the server's background work: not behind every kill of a long run.
        if cycle % max(1, CYCLES // 50) == 0:
            check_files(server)
        opened = descriptors(server)
        assert opened < first + EXTRA_DESCRIPTORS, f"cycle {cycle}: {opened} descriptors"
    print(f"{CYCLES} kills, {(time.monotonic() - began) / CYCLES:.2f} s each")

    load.start()
    load.finish()
    for end in (server.restart, server.stop):  # a clean stop loses nothing either
        load.check_all()
        end()
    print(dict(load.done))


@pytest.mark.parametrize("door", ["mqtt", "http"])
def test_kill9_right_after_the_acknowledgement(make_server, door):
    """One row, acknowledged, and the server is gone before it could do anything else."""
    server = make_server()
    for n in range(3):
        row = {"n": n, "ts": TIME_S * 1000 + n}
        if door == "mqtt":
            Client(server).publish("rows/x", row)
        else:
            answer = server.http("POST", "/api/v1/write?table=rows", json.dumps([row]), Content_Type="application/json")
            assert answer.status in (200, 204), answer
        server.kill9()
        server.restart()
        assert server.sql("SELECT n FROM rows ORDER BY n") == [[m] for m in range(n + 1)]
