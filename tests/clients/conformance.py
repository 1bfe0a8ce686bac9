"""What the conformance tests share: the broker under test, and the marks from which docs/mqtt-conformance.md is made.

MQTT_BROKER=host:port runs them against another broker, which must let anybody in. That checks the tests themselves: one
that fails on every broker is wrong. Answers that the standard leaves open are then taken as they come.
"""

import os

import pytest
from mqtt_packet import CONNACK, DISCONNECT, V31, V311, V5
from mqtt_wire import Wire
from support import unique

NAMES = {V31: "3.1", V311: "3.1.1", V5: "5.0"}
both_versions = pytest.mark.parametrize("version", [V311, V5], ids=["3.1.1", "5.0"])
every_qos = pytest.mark.parametrize("qos", [0, 1, 2])

# Another broker may remember an earlier run.
RUN = f"x{os.getpid()}-" if os.environ.get("MQTT_BROKER") else "x"
OTHER_BROKER = os.environ.get("MQTT_BROKER")
ours_only = pytest.mark.skipif(
    bool(OTHER_BROKER), reason="this test sets up a sonde server, and MQTT_BROKER names another broker"
)


def covers(v5="", v311=""):
    """Marks a test with the statements that it shows, by number: `covers(v5="3.1.0-1 3.1.0-2")`."""
    return pytest.mark.covers(v5=v5, v311=v311)


def topic(*levels):
    """A topic of the test's own. All are below one first level, so all are rows of one table."""
    return "/".join(("conf", unique(RUN), *levels))


class Broker:
    """The broker under test. All connections of a test are closed at its end."""

    def __init__(self, address, server=None):
        self.address, self.server = address, server
        self.wires = []

    def wire(self, version=V5):
        """A connection that has said nothing yet."""
        wire = Wire(self.address, version)
        self.wires.append(wire)
        return wire

    def client(self, version=V5, client_id=None, **how):
        """A connected client."""
        wire = self.wire(version)
        wire.client_id = unique(f"c{RUN}") if client_id is None else client_id
        wire.connect(wire.client_id, **how)
        return wire

    def durable(self, version=V5, client_id=None, clean=False, **how):
        """A connected client whose session outlives its connection."""
        if version == V5:
            how["props"] = {"session_expiry": 3600, **(how.get("props") or {})}
        return self.client(version, client_id, clean=clean, **how)

    def refuses(self, wire, reasons):
        """The server closes, and in 5.0 says why: one of these reasons, in a DISCONNECT or a CONNACK."""
        said = wire.until_closed()
        last = said[-1] if said else None
        if wire.version == V5 and reasons and self.server:
            assert last is not None and last.kind in (DISCONNECT, CONNACK), f"closed, and the last packet was {last}"
        if last is not None and last.kind in (DISCONNECT, CONNACK):
            assert last.reason != 0, f"closed after {last}"
            if self.server and wire.version == V5:
                assert last.reason in reasons, f"{last}, and not one of {[hex(r) for r in reasons]}"
        return said

    def serves(self):
        """It still lets a client in and delivers its messages."""
        with Wire(self.address, V311) as wire:
            wire.connect(unique("alive"))
            name = topic("alive")
            wire.subscribe(name)
            wire.publish(name, "1")
            assert wire.message().payload == b"1"
            wire.disconnect()

    def close(self):
        for wire in self.wires:
            wire.socket.close()
