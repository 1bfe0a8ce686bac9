"""MQTT 3.1.1 and 5.0 with paho-mqtt: what is published arrives, is stored, and survives what it has to survive."""

import pytest
from mqtt_packet import PUBLISH, SUBSCRIBE, connect, packet, text
from mqtt_wire import Wire, connected
from paho_client import ANSWER_SECONDS, V5, V311, Client
from support import TIME_S, unique, wait_until

both_versions = pytest.mark.parametrize("protocol", [V311, V5], ids=["3.1.1", "5.0"])


def end_of_test(client, topic):
    """Publishes a last message. What arrives before it is all that arrives: a client's messages keep their order."""
    client.publish(topic, "end")


# Publishing and subscribing


@both_versions
@pytest.mark.parametrize("qos", [0, 1, 2])
def test_a_message_arrives_and_is_a_row(server, protocol, qos):
    table = unique()
    with Client(server, protocol) as receiver, Client(server, protocol) as sender:
        assert receiver.subscribe(f"{table}/temp", qos) == qos
        sender.publish(f"{table}/temp", {"device": "d1", "value": 1.5, "ts": TIME_S}, qos)
        message = receiver.next()
    assert (message.topic, message.qos, message.retain) == (f"{table}/temp", qos, False)
    # What a subscriber has seen is stored, even at QoS 0.
    assert server.sql(f"SELECT device, value FROM {table}") == [["d1", 1.5]]


@both_versions
@pytest.mark.parametrize("published, granted", [(2, 0), (2, 1), (1, 0), (0, 2)])
def test_delivery_takes_the_lower_qos(server, protocol, published, granted):
    topic = f"{unique()}/x"
    with Client(server, protocol) as client:
        client.subscribe(topic, granted)
        client.publish(topic, "1", published)
        assert client.next_is(topic, "1").qos == min(published, granted)


@both_versions
def test_an_acknowledged_message_is_visible_at_once(server, protocol):
    table = unique()
    with Client(server, protocol) as client:
        for n in range(20):
            client.publish(f"{table}/n", {"n": n, "ts": TIME_S + n}, qos=1 + n % 2)
            assert server.sql(f"SELECT count(*) FROM {table}") == [[n + 1]]


@both_versions
def test_many_in_flight_qos_2_are_stored_and_delivered_once_and_in_order(server, protocol):
    table, count = unique(), 300
    with Client(server, protocol) as receiver, Client(server, protocol) as sender:
        receiver.subscribe(f"{table}/#", 2)
        infos = [sender.paho.publish(f"{table}/n", str(n), qos=2) for n in range(count)]
        for info in infos:
            info.wait_for_publish(ANSWER_SECONDS)
        assert all(info.is_published() for info in infos)
        assert [int(receiver.next().payload) for _ in range(count)] == list(range(count))
        end_of_test(sender, f"{table}/end")
        receiver.next_is(f"{table}/end", "end")
    # They state no time of their own: a message stored twice would be two rows.
    rows = server.sql(f"SELECT value FROM {table} WHERE value IS NOT NULL ORDER BY time")
    assert [row[0] for row in rows] == list(range(count))


@both_versions
@pytest.mark.parametrize(
    "topic_filter, matching, other",
    [
        ("{}/+/temp", "{}/a/temp", "{}/a/b/temp"),
        ("{}/a/#", "{}/a/b/c", "{}/b"),
        ("{}/a/#", "{}/a", "{}/ab"),
        ("{}/+", "{}/", "{}/a/b"),
        ("+/{}/x", "any/{}/x", "any/{}/y"),
    ],
)
def test_wildcards(server, protocol, topic_filter, matching, other):
    name = unique()
    with Client(server, protocol) as client:
        client.subscribe(topic_filter.format(name))
        client.publish(other.format(name), "1")
        client.publish(matching.format(name), "2")
        client.next_is(matching.format(name), "2")


@both_versions
def test_unsubscribe(server, protocol):
    name = unique()
    with Client(server, protocol) as client:
        client.subscribe(f"{name}/a")
        client.subscribe(f"{name}/b")
        client.unsubscribe(f"{name}/a")
        client.publish(f"{name}/a", "1")
        client.publish(f"{name}/b", "2")
        client.next_is(f"{name}/b", "2")


# Retained messages and wills


@both_versions
def test_retained(server, protocol):
    topic, late = f"{unique()}/state", f"{unique()}/end"
    with Client(server, protocol) as early, Client(server, protocol) as sender:
        early.subscribe(topic)
        sender.publish(topic, "1", retain=True)
        sender.publish(topic, "2", retain=True)
        assert [early.next_is(topic, p).retain for p in "12"] == [False, False]
        with Client(server, protocol) as second:
            second.subscribe(topic)
            assert second.next_is(topic, "2").retain
        sender.publish(topic, "", retain=True)
        with Client(server, protocol) as third:
            third.subscribe(topic)
            third.subscribe(late)
            end_of_test(third, late)
            third.next_is(late, "end")


@both_versions
def test_will(server, protocol):
    topic = f"{unique()}/gone"
    with Client(server, protocol) as watcher:
        watcher.subscribe(topic)
        with Client(server, protocol, will=(topic, "clean")):
            pass
        Client(server, protocol, will=(topic, "broken")).break_off()
        # The will of the client that said goodbye would have come first.
        watcher.next_is(topic, "broken")


@both_versions
def test_a_second_connection_takes_over(server, protocol):
    name, topic = unique("client"), f"{unique()}/x"
    first = Client(server, protocol, name=name)
    with Client(server, protocol, name=name) as second:
        first.wait_closed()
        second.subscribe(topic)
        second.publish(topic, "1")
        second.next_is(topic, "1")


# Durable sessions


def leave_and_send(server, protocol, topic, payloads):
    """A durable subscriber goes away, then these are published. The name of its session."""
    name = unique("durable")
    with Client(server, protocol, name, durable=True) as receiver:
        assert not receiver.session_present
        receiver.subscribe(topic, 1)
    with Client(server, protocol) as sender:
        for payload in payloads:
            sender.publish(topic, payload)
    return name


def receives_the_queue(server, protocol, name, topic, payloads):
    with Client(server, protocol, name, durable=True) as receiver:
        assert receiver.session_present
        for payload in payloads:
            receiver.next_is(topic, payload)
        end_of_test(receiver, topic)  # the subscription still stands, and nothing comes twice
        receiver.next_is(topic, "end")


@both_versions
def test_a_durable_session_gets_what_it_missed(server, protocol):
    topic, payloads = f"{unique()}/x", [str(n) for n in range(50)]
    name = leave_and_send(server, protocol, topic, payloads)
    receives_the_queue(server, protocol, name, topic, payloads)


@both_versions
def test_a_clean_start_ends_a_durable_session(server, protocol):
    topic = f"{unique()}/x"
    name = leave_and_send(server, protocol, topic, ["1"])
    with Client(server, protocol, name) as receiver:
        assert not receiver.session_present
        receiver.subscribe(f"{topic}/end")
        end_of_test(receiver, f"{topic}/end")
        receiver.next_is(f"{topic}/end", "end")
    with Client(server, protocol, name, durable=True) as receiver:
        assert not receiver.session_present


@pytest.mark.parametrize("end", ["stop", "kill9"])
def test_sessions_and_retained_messages_survive_the_server(make_server, end):
    server = make_server()
    payloads = [str(n) for n in range(50)]
    names = {protocol: leave_and_send(server, protocol, f"queue/{protocol}", payloads) for protocol in (V311, V5)}
    with Client(server) as sender:
        sender.publish("state/here", "on", retain=True)
    getattr(server, end)()
    server.restart()
    for protocol, name in names.items():
        receives_the_queue(server, protocol, name, f"queue/{protocol}", payloads)
    with Client(server) as late:
        late.subscribe("state/here")
        assert late.next_is("state/here", "on").retain


# Bad input


@both_versions
def test_an_undecodable_message_is_a_dead_letter_and_acknowledged(server, protocol):
    table = unique()
    with Client(server, protocol) as client:
        client.publish(f"{table}/x", {"device": "d1", "value": 1.5, "ts": TIME_S})
        client.publish(f"{table}/x", {"device": "d1", "value": "warm", "ts": TIME_S + 1})
        client.publish(f"{table}/x", {"device": "d1", "value": 2.5, "ts": TIME_S + 2})
        letters = server.sql(f"SELECT client, reason FROM system.dead_letters WHERE topic = '{table}/x'")
        assert server.sql(f"SELECT value FROM {table} ORDER BY time") == [[1.5], [2.5]]
    assert [letter[0] for letter in letters] == [client.name]
    assert "value" in letters[0][1]


malformed = {
    "QoS 3": packet(PUBLISH, text("a") + b"\x00\x01", 6),
    "a length of five bytes": b"\x30\xff\xff\xff\xff\x01",
    "a topic beyond the packet": packet(PUBLISH, b"\x00\xffa"),
    "a wildcard in a topic": packet(PUBLISH, text("a/#") + b"\x00"),
    "a subscription without filters": packet(SUBSCRIBE, b"\x00\x01\x00", 2),
    "a second CONNECT": connect(V311, "again"),
    "a type that does not exist": packet(0),
}


@both_versions
@pytest.mark.parametrize("sent", malformed.values(), ids=malformed.keys())
def test_a_malformed_packet_closes_only_its_connection(server, protocol, sent):
    topic = f"{unique()}/x"
    with Client(server, protocol) as neighbour:
        neighbour.subscribe(topic)
        with connected(server.address("mqtt"), protocol) as wire:
            end = wire.send(sent).ended()
        if protocol == V5:
            assert end.reason >= 0x80, "a reason code says what was wrong"
        neighbour.publish(topic, "1")
        neighbour.next_is(topic, "1")


def test_what_is_not_mqtt_is_closed(server):
    with Wire(server.address("mqtt")) as wire:
        assert wire.send(b"GET / HTTP/1.1\r\nHost: example\r\n\r\n").bytes_until_closed() == b""
    with Client(server) as client:
        client.publish(f"{unique()}/x", "1")


@both_versions
def test_an_oversize_packet_closes_its_connection(server, protocol):
    table = unique()
    client = Client(server, protocol)
    client.publish(f"{table}/x", "1")
    client.paho.publish(f"{table}/x", b"2" * (2 << 20), qos=1)
    client.wait_closed()
    wait_until(lambda: server.sql(f"SELECT count(*) FROM {table}") == [[1]], "only the small message")
