"""Fixtures. A test gets a server from `server` (one for each file) or `make_server` (its own).

SONDE_BIN names the binary, as scripts/client_tests.sh sets it.
"""

import os

import pytest
from support import servers


@pytest.fixture(scope="session")
def binary():
    path = os.environ.get("SONDE_BIN")
    if not path:
        pytest.exit("SONDE_BIN must name the sonde binary; scripts/client_tests.sh builds it and sets this", 2)
    return os.path.abspath(path)


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
