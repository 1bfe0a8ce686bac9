"""Fixtures. A test gets a server from `server` (one for each file) or `make_server` (its own).

SONDE_BIN names the binary, as scripts/client_tests.sh sets it.
"""

import os
from contextlib import contextmanager

import pytest
from support import Server


@pytest.fixture(scope="session")
def binary():
    path = os.environ.get("SONDE_BIN")
    if not path:
        pytest.exit("SONDE_BIN must name the sonde binary; scripts/client_tests.sh builds it and sets this", 2)
    return os.path.abspath(path)


@contextmanager
def servers(binary, factory):
    """Makes servers, and at the end stops those that still run, each of which must end with exit code 0."""
    made = []

    def make():
        made.append(Server(binary, factory.mktemp("sonde")))
        return made[-1].start()

    try:
        yield make
        for server in made:
            if server.running:
                server.stop()
    finally:
        for server in made:
            if server.running:
                server.kill9()


@pytest.fixture
def make_server(binary, tmp_path_factory):
    """Starts servers of the test's own, which it may stop, kill and restart."""
    with servers(binary, tmp_path_factory) as make:
        yield make


@pytest.fixture(scope="module")
def server(binary, tmp_path_factory):
    """The server that the tests of one file share; each test uses names of its own (`support.unique`)."""
    with servers(binary, tmp_path_factory) as make:
        yield make()
