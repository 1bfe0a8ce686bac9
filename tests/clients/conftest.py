"""Fixtures. A test gets a server from `server` (one for each file) or `make_server` (its own), and the conformance tests
`broker`, a view of one server that all of them share.

SONDE_BIN names the binary, as scripts/client_tests.sh sets it.
"""

import os

import pytest
from conformance import OTHER_BROKER, Broker
from support import servers


def pytest_configure(config):
    config.addinivalue_line("markers", "covers(v5, v311): the statements of the MQTT standards that the test shows")


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


@pytest.fixture(scope="session")
def broker_server(request):
    """The server of the conformance tests, or None where MQTT_BROKER names another broker."""
    if OTHER_BROKER:
        yield None
        return
    binary, factory = request.getfixturevalue("binary"), request.getfixturevalue("tmp_path_factory")
    with servers(binary, factory) as make:
        yield make()


@pytest.fixture
def broker(broker_server):
    if broker_server:
        address = broker_server.address("mqtt")
    else:
        host, port = OTHER_BROKER.rsplit(":", 1)
        address = host, int(port)
    broker = Broker(address, broker_server)
    yield broker
    broker.close()
