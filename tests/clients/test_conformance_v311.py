"""What only MQTT 3.1.1 has: return codes, silence about what was wrong; and MQTT 3.1 as far as CONNECT."""

import pytest
from conformance import covers, ours_only, topic
from mqtt_packet import CONNACK, PINGREQ, SUBACK, V31, V311, connect, packet, publish, subscribe
from support import unique
from test_conformance_common import until


@covers(v311="3.1.2-2 3.2.2-4 3.2.2-5")
@pytest.mark.parametrize("level", [0, 2, 6, 255])
def test_a_level_that_does_not_exist(broker, level):
    said = broker.wire(V311).send(connect(V311, "c", level=level)).bytes_until_closed()
    # 0x84 in the form of 5.0 answers a level above all that there are.
    assert said[:1] == b"\x20" and said[2] == 0 and said[3] in ((0x01, 0x84) if level > 5 else (0x01,)), said


@covers(v311="3.1.3-7 3.1.3-8 3.1.3-9 3.2.2-4 3.2.2-5")
def test_no_client_id_and_a_session_to_keep(broker):
    wire = broker.wire(V311)
    wire.send(connect(V311, "", clean=False))
    (connack,) = wire.until_closed()
    assert (connack.kind, connack.reason, connack.session_present) == (CONNACK, 2, False)


@covers(v311="3.1.4-5 3.2.2-4 3.2.2-5 3.2.2-6")
@ours_only
def test_a_refused_client_gets_a_return_code_and_nothing_else_is_done(broker):
    name, end, watcher = topic(), topic(), broker.client()
    watcher.subscribe(name, end)
    wire = broker.wire(V311)
    wire.send(
        connect(V311, unique("c"), username="nobody", password="wrong"), publish(V311, name, "1"), packet(PINGREQ)
    )
    (connack,) = wire.until_closed()
    assert (connack.kind, connack.session_present) == (CONNACK, False)
    assert connack.reason in (4, 5)
    assert until(watcher, broker.client(), end) == []


@covers(v311="3.3.5-2")
@ours_only
def test_a_publish_that_is_not_allowed_is_acknowledged(broker):
    client = broker.client(V311)
    for qos in (1, 2):
        client.publish("$SYS/broker/x", "1", qos)
    client.ping()


@covers(v311="3.8.4-5 3.9.3-2 3.8.3-2")
@pytest.mark.parametrize("qos", [0, 1, 2])
def test_suback_grants_every_qos(broker, qos):
    client = broker.client(V311)
    client.send(subscribe(V311, 3, [(topic("#"), qos)]))
    assert client.expect(SUBACK, 3).reasons == [qos]


@pytest.mark.parametrize("client_id", ["v31", "a-client-id-of-23-bytes"])
def test_3_1_is_let_in(broker, client_id):
    client, name = broker.client(V31, client_id), topic()
    assert client.connack.session_present is False
    assert client.subscribe((name, 2)) == [2]
    client.publish(name, "x", 2)
    assert client.message().qos == 2
    client.disconnect()


def test_3_1_keeps_its_session(broker):
    """The flag that says so came with 3.1.1: what was missed shows it."""
    name, sender = topic(), broker.client()
    client = broker.durable(V31, unique("old"))
    client.subscribe((name, 1))
    client.disconnect()
    sender.publish(name, "missed", 1)
    again = broker.durable(V31, client.client_id)
    assert again.message().payload == b"missed"
