"""What only MQTT 5.0 has: properties, reason codes, flow control, aliases, expiry, shared subscriptions, identifiers."""

import time

import pytest
from conformance import covers, every_qos, ours_only, topic
from mqtt_packet import (
    CONNACK,
    DISCONNECT,
    PINGREQ,
    PUBACK,
    PUBCOMP,
    PUBLISH,
    PUBREC,
    PUBREL,
    SUBACK,
    UNSUBACK,
    V5,
    Will,
    ack,
    connect,
    disconnect,
    options,
    packet,
    publish,
    subscribe,
    unsubscribe,
)
from mqtt_wire import Wire, connected
from support import unique
from test_conformance_common import until

# CONNECT and CONNACK


@covers(v5="3.1.2-2 4.13.2-1 3.2.2-7")
@pytest.mark.parametrize("level", [0, 6, 255])
def test_a_version_that_does_not_exist(broker, level):
    # Which form a CONNACK has for a version that nobody knows is open; its code is 0x84, or 0x01 as in 3.1.1.
    said = broker.wire().send(connect(V5, "c", level=level)).bytes_until_closed()
    assert said == b"" or (said[0] == 0x20 and said[3] in (0x84, 0x01)), said


@covers(v5="3.1.3-6 3.1.3-7 3.2.2-16")
def test_the_assigned_client_id_is_told_and_is_the_clients(broker):
    first, second = broker.client(client_id=""), broker.client(client_id="")
    names = [c.connack.props["assigned_client_id"] for c in (first, second)]
    assert names[0] != names[1] and all(names)
    name = broker.durable(client_id="", clean=True).connack.props["assigned_client_id"]
    assert broker.durable(client_id=name).connack.session_present


@covers(v5="3.2.2-16")
def test_no_client_id_is_assigned_to_one_that_has_one(broker):
    assert "assigned_client_id" not in broker.client().connack.props


@covers(v5="3.1.2-23 4.1.0-2 3.1.2-4")
def test_a_session_expires(broker):
    client = broker.client(clean=True, props={"session_expiry": 1})
    client.disconnect()
    # It is there within its second ...
    again = broker.client(client_id=client.client_id, clean=False, props={"session_expiry": 1})
    assert again.connack.session_present
    again.disconnect()
    # ... and gone some time after it: whoever asks holds no session of that name.
    deadline = wait_for(lambda: not peek(broker, client.client_id))
    assert deadline


def peek(broker, client_id):
    """Whether there is such a session. Taking it over keeps it for a second more."""
    found = broker.client(client_id=client_id, clean=False, props={"session_expiry": 1})
    present = found.connack.session_present
    found.disconnect()
    return present


def wait_for(condition, seconds=15):
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        time.sleep(1.2)
        if condition():
            return True
    return False


@covers(v5="4.1.0-2 3.14.2-2")
def test_disconnect_changes_the_expiry(broker):
    client = broker.durable()
    client.disconnect(0, {"session_expiry": 0})
    assert not broker.durable(client_id=client.client_id).connack.session_present
    other = broker.durable()
    other.disconnect(0, {"session_expiry": 600})
    assert broker.durable(client_id=other.client_id).connack.session_present


@covers(v5="3.1.2-23")
def test_clean_start_and_expiry_are_independent(broker):
    """A clean start does not mean that the session ends with the connection."""
    client = broker.durable(clean=True)
    client.disconnect()
    assert broker.durable(client_id=client.client_id).connack.session_present


@covers(v5="3.2.2-9 3.2.2-10")
def test_connack_offers_everything(broker):
    """What CONNACK does not deny is there: QoS 2, retained messages, wildcards, shared subscriptions, identifiers."""
    client = broker.client()
    props = client.connack.props
    assert "maximum_qos" not in props
    assert client.subscribe(*((topic(), qos) for qos in range(3))) == [0, 1, 2]
    for feature in ("retain_available", "wildcard_available", "shared_available", "subscription_identifiers_available"):
        assert props.get(feature, 1) == 1, feature
    assert props.get("receive_maximum", 65535) > 0
    broker.client(will=Will(topic(), b"x", 2, True)).disconnect()


@covers(v5="3.1.2-28")
@pytest.mark.parametrize("asked", [None, 0])
def test_response_information_comes_only_to_who_asks(broker, asked):
    props = {} if asked is None else {"request_response_information": asked}
    assert "response_information" not in broker.client(props=props).connack.props


@covers(v5="3.1.2-29")
def test_without_problem_information_answers_have_neither_reason_strings_nor_user_properties(broker):
    client = broker.client(props={"request_problem_information": 0})
    name = topic()
    answers = [
        client.publish(name, "1", 1),
        client.publish(name, "2", 2),
        client.publish("$SYS/conf", "not allowed", 1),
    ]
    client.send(subscribe(V5, 900, [("$share/g/" + name, 0), (name, 1)]))
    answers.append(client.expect(SUBACK, 900))
    client.send(ack(PUBREL, 999))
    answers.append(client.expect(PUBCOMP, 999))
    for answer in answers:
        assert not {"reason_string", "user_property"} & set(answer.props), answer


@covers(v5="3.1.2-21 3.2.2-21")
@ours_only
@pytest.mark.parametrize("asked", [0, 300])
def test_a_keep_alive_of_the_server_replaces_the_clients(make_server, asked):
    address = make_server("mqtt.keep_alive_maximum=1 second").address("mqtt")
    with connected(address, keep_alive=asked) as silent, connected(address, keep_alive=asked) as lively:
        since = time.monotonic()
        assert silent.connack.props["server_keep_alive"] == 1
        while not silent.has_arrived(0.2):
            lively.ping()
            assert time.monotonic() - since < 10, "it is still there"
        assert time.monotonic() - since > 1, "closed before the keep alive was over"
        assert [(p.kind, p.reason) for p in silent.until_closed()] == [(DISCONNECT, 0x8D)]
        lively.ping()
    with connected(make_server("mqtt.keep_alive_maximum=10 minutes").address("mqtt"), keep_alive=300) as client:
        assert "server_keep_alive" not in client.connack.props, "the client's is short enough"


@covers(v5="3.1.2-24 3.2.2-19 3.2.2-7")
@ours_only
def test_a_refusal_fits_the_clients_maximum(make_server):
    """CONNACK that refuses has a Reason String, unless that makes it too large; it may be too large even without one."""
    address = make_server("mqtt.anonymous=never").address("mqtt")
    said = {}
    for size in (200, 40, 20, 5, 4):
        with Wire(address) as wire:
            wire.send(connect(V5, unique("c"), username="nobody", password="wrong", props={"maximum_packet_size": size}))
            said[size] = wire.until_closed()
        assert all(it.kind == CONNACK and it.size <= size for it in said[size]), said
    assert "reason_string" in said[200][0].props
    (whole,) = {it.size for it in said[200]}
    assert whole > 40, "else the next ones show nothing"
    for size in (40, 20, 5):
        assert [(it.reason, it.props) for it in said[size]] == [(said[200][0].reason, {})]
    assert said[4] == []


@covers(v5="3.1.4-2 3.1.4-6 3.2.2-6 3.2.2-7 3.2.2-8 4.13.2-1")
@ours_only
def test_a_refused_client_gets_a_reason_and_nothing_else_is_done(broker):
    name, end, watcher = topic(), topic(), broker.client()
    watcher.subscribe(name, end)
    wire = broker.wire()
    wire.send(
        connect(V5, unique("c"), clean=False, username="nobody", password="wrong"),
        publish(V5, name, "1"),
        packet(PINGREQ),
    )
    (connack,) = wire.until_closed()
    assert (connack.kind, connack.session_present) == (CONNACK, False)
    assert connack.reason in (0x86, 0x87)
    assert until(watcher, broker.client(), end) == []


@covers(v5="4.12.0-1 3.2.2-7")
def test_an_unknown_authentication_method(broker):
    wire = broker.wire()
    wire.send(connect(V5, unique("c"), props={"authentication_method": "NONE-SUCH", "authentication_data": b"x"}))
    said = wire.until_closed()
    assert [(p.kind, p.reason) for p in said] in ([(CONNACK, 0x8C)], [(CONNACK, 0x87)])


@covers(v5="4.12.0-6")
def test_no_authentication_method_for_who_names_none(broker):
    client = broker.client()
    assert not {"authentication_method", "authentication_data"} & set(client.connack.props)
    client.ping()
    assert client.waiting == []


# Maximum Packet Size, Receive Maximum


@covers(v5="3.1.2-24 3.1.2-25")
@every_qos
def test_what_is_too_large_for_a_client_is_done_with(broker, qos):
    props = {"maximum_packet_size": 120, "receive_maximum": 1}
    client, sender, name = broker.client(props=props), broker.client(), topic()
    client.subscribe((name, 2))
    for _ in range(3):  # each of them would take the only place in flight
        sender.publish(name, b"x" * 200, qos)
    sender.publish(name, "small", qos)
    found = client.message()
    assert found.payload == b"small" and found.size <= 120


def answers_to(client):
    """What the server has to say to a client that does what it may not, by the kind of the packet."""
    answers = [client.publish("$SYS/a/topic/that/nobody/may/publish/to", "1", 1)]
    client.send(publish(V5, "$SYS/a/topic", "1", 2, 50))
    answers.append(client.expect(PUBREC, 50))
    client.send(ack(PUBREL, 60))
    answers.append(client.expect(PUBCOMP, 60))
    client.send(subscribe(V5, 70, [("$conf/a/filter/that/nobody/may/read", 0)]))
    answers.append(client.expect(SUBACK, 70))
    client.send(unsubscribe(V5, 71, ["a/filter/that/was/never/subscribed/to/by/anybody"]))
    answers.append(client.expect(UNSUBACK, 71))
    client.send(disconnect(0, {"session_expiry": 9}))  # and CONNECT had none
    return {answer.kind: answer for answer in answers + client.until_closed()}


@covers(v5="3.1.2-24 3.4.2-2 3.5.2-2 3.9.2-1 3.11.2-1 3.14.2-3")
def test_answers_fit_the_clients_maximum(broker):
    """However small it is: reason strings and user properties go first."""
    size = 64 if not broker.server else 40
    client = broker.client(props={"maximum_packet_size": size})
    assert client.connack.size <= size
    answers = answers_to(client)
    assert all(answer.size <= size for answer in answers.values()), answers
    if broker.server:
        roomy = answers_to(broker.client())
        assert set(answers) == set(roomy) == {PUBACK, PUBREC, PUBCOMP, SUBACK, UNSUBACK, DISCONNECT}
        for kind in set(answers) - {PUBCOMP}:
            assert "reason_string" in roomy[kind].props and roomy[kind].size > size, roomy[kind]
            assert "reason_string" not in answers[kind].props, answers[kind]


@covers(v5="3.3.4-9 4.9.0-1 4.9.0-2 4.9.0-3 3.3.4-10")
@pytest.mark.parametrize("maximum", [1, 3])
def test_no_more_in_flight_than_the_clients_receive_maximum(broker, maximum):
    client, sender, name, end = broker.client(props={"receive_maximum": maximum}), broker.client(), topic(), topic()
    client.subscribe((name, 2), (end, 0))
    for n in range(8):
        sender.publish(name, str(n), 1 + n % 2)
    sender.publish(end, "end")
    held = [client.message(acknowledge=False) for _ in range(maximum)]
    # Other packets are answered, and QoS 0 may pass.
    client.ping()
    client.unsubscribe("nothing")
    assert [p for p in client.waiting if p.kind == PUBLISH and p.qos] == []
    client.waiting = [p for p in client.waiting if p.kind != PUBLISH]
    found = []
    while len(found) < 8:
        message = held.pop(0) if held else client.message(acknowledge=False)
        if message.topic == name:
            client.acknowledge(message)
            found.append(int(message.payload))
    assert sorted(found) == list(range(8))


@covers(v5="3.3.4-9 4.9.0-1 4.9.0-2")
def test_no_more_is_sent_again_than_the_new_receive_maximum(broker):
    client, sender, name = broker.durable(props={"receive_maximum": 6}), broker.client(), topic()
    client.subscribe((name, 1))
    for n in range(6):
        sender.publish(name, str(n), 1)
    for _ in range(6):
        client.message(acknowledge=False)
    client.break_off()
    again = broker.durable(client_id=client.client_id, props={"receive_maximum": 2})
    held = [again.message(acknowledge=False) for _ in range(2)]
    again.ping()
    assert [it for it in again.waiting if it.kind == PUBLISH] == []
    for message in held:
        again.acknowledge(message)
    found = [int(it.payload) for it in held] + [int(again.message().payload) for _ in range(4)]
    assert found == list(range(6)), "in their first order"


@covers(v5="4.4.0-2 4.9.0-2")
def test_an_error_from_the_receiver_ends_a_message(broker):
    client, sender, name = broker.durable(props={"receive_maximum": 1}), broker.client(), topic()
    client.subscribe((name, 2))
    for n, qos in enumerate((1, 2, 1)):
        sender.publish(name, str(n), qos)
    for n, kind in ((0, PUBACK), (1, PUBREC)):
        message = client.message(acknowledge=False)
        assert message.payload == str(n).encode()
        client.send(ack(kind, message.packet_id, 0x80))
    last = client.message()
    assert last.payload == b"2", "no PUBREL for what was refused, and the place in flight is free"
    client.disconnect()
    again = broker.durable(client_id=client.client_id)
    sender.publish(name, "3", 1)
    assert again.message().payload == b"3"


@covers(v5="3.3.4-7 4.9.0-1")
@ours_only
def test_a_client_that_sends_more_than_our_receive_maximum_is_disconnected(broker):
    """QoS 2 without PUBREL: none of them is done with."""
    client, name = broker.client(), topic()
    maximum = client.connack.props.get("receive_maximum", 65535)
    client.send(*(publish(V5, name, b"", 2, n) for n in range(1, maximum + 2)))
    said = client.until_closed()
    assert (said[-1].kind, said[-1].reason) == (DISCONNECT, 0x93)


@covers(v5="3.2.2-15")
def test_a_packet_above_our_maximum(broker):
    client = broker.client()
    maximum = client.connack.props.get("maximum_packet_size")
    if maximum is None:
        pytest.skip("this broker sets no maximum packet size")
    client.send(publish(V5, topic(), b"x" * maximum))
    said = client.until_closed()
    assert [(p.kind, p.reason) for p in said] == [(DISCONNECT, 0x95)]
    broker.serves()


# PUBLISH


@covers(v5="3.3.2-4 3.3.2-15 3.3.2-16 3.3.2-17 3.3.2-18 3.3.2-20 3.3.2-13 3.3.2-19 3.1.3-10")
@pytest.mark.parametrize("how", ["published", "retained", "queued", "will"])
def test_properties_arrive_as_they_were_sent(broker, how):
    props = {
        "payload_format": 1,
        "content_type": "text/plain; \u00e9",
        "response_topic": "conf/answers/\u00e9",
        "correlation_data": b"\0\xff binary",
        "user_property": [("b", "1"), ("a", "2"), ("b", "3"), ("", "")],
    }
    name, sender = topic(), broker.client()
    receiver = broker.durable()
    if how == "retained":
        sender.publish(name, "x", 1, True, props=props)
    receiver.subscribe((name, 1))
    if how == "queued":
        receiver.disconnect()
    if how == "will":
        broker.client(will=Will(name, b"x", 1, props=props)).break_off()
    elif how != "retained":
        sender.publish(name, "x", 1, props=props)
    if how == "queued":
        receiver = broker.durable(client_id=receiver.client_id)
    assert receiver.message().props == props


@covers(v5="3.4.2-1 3.5.2-1 4.3.3-9")
@ours_only
def test_what_may_not_be_published_is_told(broker):
    client = broker.client()
    assert client.publish("$SYS/broker/clients/connected", "1", 1).reason == 0x87
    for _ in range(2):  # the identifier is free again at once
        client.send(publish(V5, "$SYS/broker/x", "1", 2, 77))
        assert client.expect(PUBREC, 77).reason == 0x87
    name, end = topic(), topic()
    client.subscribe(name, end)
    client.send(publish(V5, name, "1", 2, 77))
    assert client.expect(PUBREC, 77).reason in (0, 0x10)
    client.send(ack(PUBREL, 77))
    client.expect(PUBCOMP, 77)
    assert [m.payload for m in until(client, client, end)] == [b"1"]


@covers(v5="3.6.2-1 3.7.2-1")
def test_an_unknown_identifier_in_pubrel(broker):
    client = broker.client()
    client.send(ack(PUBREL, 1234))
    assert client.expect(PUBCOMP, 1234).reason == 0x92
    client.ping()


@covers(v5="3.3.2-5 3.3.2-6 4.3.3-7 4.3.3-13")
def test_messages_expire_and_say_how_long_they_have_left(broker):
    name, sender, receiver = topic(), broker.client(), broker.durable()
    receiver.subscribe((name, 1))
    receiver.disconnect()
    for payload, expiry in (("gone", 1), ("stays", 600)):
        sender.publish(name, payload, 1, props={"message_expiry": expiry})
        sender.publish(f"{name}/kept/{payload}", payload, 1, True, {"message_expiry": expiry})
    sender.send(publish(V5, name + "/x", "begun", 2, 500, props={"message_expiry": 1}))
    sender.expect(PUBREC, 500)
    time.sleep(2.1)  # the seconds of the interval are what is tested
    sender.send(ack(PUBREL, 500))
    assert sender.expect(PUBCOMP, 500).reason == 0, "the exchange goes on"
    again = broker.durable(client_id=receiver.client_id)
    found = again.message()
    assert found.payload == b"stays" and 590 <= found.props["message_expiry"] <= 599
    again.subscribe((f"{name}/kept/#", 1))
    kept = again.message()
    assert kept.payload == b"stays" and kept.retain and 590 <= kept.props["message_expiry"] <= 599


@covers(v5="3.3.2-6")
def test_a_message_that_does_not_wait_keeps_its_expiry(broker):
    client, name = broker.client(), topic()
    client.subscribe(name)
    client.publish(name, "1", props={"message_expiry": 100})
    assert client.message().props["message_expiry"] in (99, 100)
    client.publish(name, "2")
    assert "message_expiry" not in client.message().props


# Topic aliases


@covers(v5="3.3.2-12 3.2.2-17")
def test_a_client_may_use_topic_aliases(broker):
    client, receiver, name = broker.client(), broker.client(), topic()
    maximum = client.connack.props.get("topic_alias_maximum", 0)
    assert maximum > 0, "the server offers none"
    receiver.subscribe(f"{name}/#")
    client.publish(f"{name}/a", "1", props={"topic_alias": 1})
    client.publish("", "2", props={"topic_alias": 1})
    client.publish("", "3", 1, props={"topic_alias": 1})
    client.publish(f"{name}/b", "4", props={"topic_alias": maximum})
    client.publish(f"{name}/c", "5", 2, props={"topic_alias": 1})  # a new name for it
    client.publish("", "6", props={"topic_alias": 1})
    client.publish("", "7", props={"topic_alias": maximum})
    found = [receiver.message() for _ in range(7)]
    assert [m.topic[-1] + m.payload.decode() for m in found] == ["a1", "a2", "a3", "b4", "c5", "c6", "b7"]
    assert all("topic_alias" not in m.props for m in found), "the receiver allows none"


@covers(v5="3.2.2-17 3.2.2-18 3.3.2-9 3.3.2-8 4.13.1-1")
@pytest.mark.parametrize("how", ["unknown", "beyond"])
def test_topic_aliases_that_are_none(broker, how):
    client = broker.client()
    maximum = client.connack.props.get("topic_alias_maximum", 0)
    name, alias = ("", 1) if how == "unknown" else (topic(), maximum + 1)
    client.send(publish(V5, name, "1", props={"topic_alias": alias}))
    broker.refuses(client, {0x82, 0x94} if how == "unknown" else {0x94})


@covers(v5="3.3.2-7")
def test_topic_aliases_end_with_the_connection(broker):
    client, name = broker.durable(), topic()
    client.publish(name, "1", 1, props={"topic_alias": 1})
    client.disconnect()
    again = broker.durable(client_id=client.client_id)
    again.send(publish(V5, "", "2", props={"topic_alias": 1}))
    broker.refuses(again, {0x82, 0x94})


@covers(v5="3.1.2-26 3.1.2-27 3.3.2-11 3.3.2-8")
@pytest.mark.parametrize("maximum", [None, 0, 1, 5])
def test_the_server_uses_no_more_aliases_than_the_client_allows(broker, maximum):
    client = broker.client(props={} if maximum is None else {"topic_alias_maximum": maximum})
    name, names = topic(), {}
    client.subscribe(f"{name}/#")
    for n in range(30):
        client.publish(f"{name}/{n % 10}", str(n % 10))
    for n in range(30):
        found = client.message()
        alias = found.props.get("topic_alias")
        if alias is not None:
            assert 0 < alias <= (maximum or 0)
            if found.topic:
                names[alias] = found.topic
        assert (found.topic or names[alias]) == f"{name}/{n % 10}"
        assert found.payload == str(n % 10).encode()
    if broker.server:
        assert set(names) == set(range(1, (maximum or 0) + 1)), "and it uses them"


# Subscription options and identifiers


@covers(v5="3.8.3-3")
def test_no_local(broker):
    client, other, name, end = broker.client(), broker.client(), topic(), topic()
    client.subscribe((name, options(1, no_local=True)), (end, 1))
    client.publish(name, "mine", 1)
    other.publish(name, "theirs", 1)
    assert [m.payload for m in until(client, other, end)] == [b"theirs"]


@covers(v5="3.3.1-12 3.3.1-13")
@pytest.mark.parametrize("as_published", [False, True])
@pytest.mark.parametrize("retain", [False, True])
def test_retain_as_published(broker, as_published, retain):
    client, name = broker.client(), topic()
    client.subscribe((name, options(1, retain_as_published=as_published)))
    client.publish(name, "1", 1, retain)
    assert client.message().retain is (as_published and retain)


@covers(v5="3.3.1-9 3.3.1-10 3.3.1-11 3.8.4-4")
@pytest.mark.parametrize("handling, expected", [(0, [1, 1]), (1, [1, 0]), (2, [0, 0])])
def test_retain_handling(broker, handling, expected):
    client, name, end = broker.client(), topic(), topic()
    client.publish(name, "kept", 1, True)
    client.subscribe((end, 1))
    for count in expected:
        client.subscribe((name, options(1, retain_handling=handling)))
        found = until(client, client, end)
        assert [(m.payload, m.retain) for m in found] == [(b"kept", True)] * count
    client.unsubscribe(name)
    client.subscribe((name, options(1, retain_handling=handling)))
    assert len(until(client, client, end)) == expected[0], "after UNSUBSCRIBE it is a new subscription"


@covers(v5="3.3.4-3 3.3.4-4 3.3.4-5")
def test_subscription_identifiers(broker):
    client, name, end = broker.client(), topic(), topic()
    client.subscribe((f"{name}/#", 1), props={"subscription_identifier": 1})
    client.subscribe((f"{name}/+", 1), props={"subscription_identifier": 268_435_455})
    client.subscribe((f"{name}/a", 1))
    client.subscribe((end, 1))
    client.publish(f"{name}/a", "1", 1)
    found = until(client, client, end)
    identifiers = [n for m in found for n in m.props.get("subscription_identifier", [])]
    assert sorted(identifiers) == [1, 268_435_455]


@covers(v5="3.8.4-3 3.3.4-3")
def test_a_new_subscription_replaces_the_identifier(broker):
    client, name, end = broker.client(), topic(), topic()
    client.subscribe((name, 1), props={"subscription_identifier": 7})
    client.subscribe((name, 1), props={"subscription_identifier": 8})
    client.subscribe((end, 1))
    client.publish(name, "1", 1)
    assert [m.props.get("subscription_identifier") for m in until(client, client, end)] == [[8]]
    client.subscribe((name, 1))
    client.publish(name, "2", 1)
    assert [m.props.get("subscription_identifier") for m in until(client, client, end)] == [None]


@covers(v5="3.3.4-3")
@pytest.mark.parametrize("how", ["retained", "queued"])
def test_subscription_identifiers_of_what_waited(broker, how):
    name, sender, client = topic(), broker.client(), broker.durable()
    if how == "retained":
        sender.publish(name, "1", 1, True)
    client.subscribe((name, 1), props={"subscription_identifier": 5})
    if how == "queued":
        client.disconnect()
        sender.publish(name, "1", 1)
        client = broker.durable(client_id=client.client_id)
    assert client.message().props["subscription_identifier"] == [5]


# Shared subscriptions


@covers(v5="4.8.2-1 4.8.2-2")
@pytest.mark.parametrize(
    "topic_filter", ["$share/g", "$share//a", "$share/g/", "$share/+/a", "$share/#/a", "$share/a+b/c"]
)
def test_share_names_that_are_none(broker, topic_filter):
    client = broker.client()
    client.send(subscribe(V5, 1, [(topic_filter, 0)]))
    answer = client.next()
    if answer.kind == SUBACK:
        assert answer.reasons == [0x8F]
    else:
        assert (answer.kind, answer.reason in (0x81, 0x82, 0x8F)) == (DISCONNECT, True)
    broker.serves()


@covers(v5="4.8.2-3")
def test_each_message_goes_to_one_member_of_a_group(broker):
    name, group, sender = topic(), unique("g"), broker.client()
    members = [broker.client() for _ in range(3)]
    for member, qos in zip(members, (0, 1, 2), strict=True):
        assert member.subscribe((f"$share/{group}/{name}/+", qos), (f"{name}/a/end", 1)) == [qos, 1]
    single = broker.client()
    single.subscribe((f"{name}/+", 2))
    for n in range(30):
        sender.publish(f"{name}/a", str(n), 2)
    sender.publish(f"{name}/a/end", "end", 1)
    taken = [member.messages_before(f"{name}/a/end") for member in members]
    assert sorted(int(m.payload) for messages in taken for m in messages) == list(range(30))
    assert [int(single.message().payload) for _ in range(30)] == list(range(30)), "who does not share gets all"
    for messages, qos in zip(taken, (0, 1, 2), strict=True):
        assert {m.qos for m in messages} <= {qos}, "each has the QoS that it was granted"


@covers(v5="3.3.1-9 4.8.2-3")
def test_no_retained_messages_to_shared_subscriptions(broker):
    client, name, end = broker.client(), topic(), topic()
    client.publish(name, "kept", 1, True)
    client.subscribe((f"$share/g/{name}", 1), (end, 1))
    assert until(client, client, end) == []


@covers(v5="3.10.4-1 4.8.2-2")
def test_leaving_a_group(broker):
    first, second, sender, name, group = broker.client(), broker.client(), broker.client(), topic(), unique("g")
    shared = f"$share/{group}/{name}"
    first.subscribe((shared, 1))
    second.subscribe((shared, 1))
    assert first.unsubscribe(shared, name) == [0, 0x11]
    for n in range(10):
        sender.publish(name, str(n), 1)
    assert [int(second.message().payload) for _ in range(10)] == list(range(10))


@covers(v5="4.8.2-5 4.8.2-4")
def test_an_unacknowledged_message_of_a_group_is_not_lost(broker):
    """QoS 1 may be given to another member when its first one is gone for good; QoS 2 that was begun may not."""
    first, second, sender, name, group = broker.durable(), broker.client(), broker.client(), topic(), unique("g")
    shared = f"$share/{group}/{name}"
    first.subscribe((shared, 2))
    sender.publish(name, "1", 2)
    message = first.message(acknowledge=False)
    first.break_off()
    second.subscribe((shared, 2))
    again = broker.durable(client_id=first.client_id)
    found = again.message()
    assert (found.packet_id, found.dup) == (message.packet_id, True), "delivery ends where it began"
    second.ping()
    assert [p for p in second.waiting if p.kind == PUBLISH] == []


@covers(v5="4.8.2-5")
def test_qos_2_of_a_group_is_not_given_to_another_member(broker):
    first, second, sender, name, end = broker.durable(), broker.client(), broker.client(), topic(), topic()
    shared = f"$share/{unique('g')}/{name}"
    first.subscribe((shared, 2))
    sender.publish(name, "1", 2)
    message = first.message(acknowledge=False)
    first.send(ack(PUBREC, message.packet_id))
    first.expect(PUBREL, message.packet_id)
    second.subscribe((shared, 2), (end, 1))
    first.disconnect(0, {"session_expiry": 0})
    assert until(second, sender, end) == []


@covers(v5="4.8.2-6")
@pytest.mark.parametrize("qos, kind", [(1, PUBACK), (2, PUBREC)])
def test_a_message_that_a_member_refuses_is_discarded(broker, qos, kind):
    first, second, sender, name, end = broker.client(), broker.client(), broker.client(), topic(), topic()
    shared = f"$share/{unique('g')}/{name}"
    first.subscribe((shared, qos))
    sender.publish(name, "1", qos)
    message = first.message(acknowledge=False)
    second.subscribe((shared, qos), (end, 1))
    first.send(ack(kind, message.packet_id, 0x83))
    first.ping()
    assert until(second, sender, end) == []


# Wills


@covers(v5="3.1.2-8 3.1.3-9")
def test_a_will_is_delayed(broker):
    watcher, name, end = broker.client(), topic(), topic()
    watcher.subscribe((name, 1), (end, 1))
    delayed = Will(name, b"late", 1, props={"will_delay": 1})
    broker.durable(will=delayed).break_off()
    broker.client(will=Will(name, b"at once", 1)).break_off()
    assert [watcher.message().payload for _ in range(2)] == [b"at once", b"late"]


@covers(v5="3.1.3-9 3.1.2-8 3.1.2-10")
def test_a_delayed_will_is_not_sent_when_the_client_comes_back(broker):
    watcher, name, end = broker.client(), topic(), topic()
    watcher.subscribe((name, 1), (end, 1))
    client = broker.durable(will=Will(name, b"first", 1, props={"will_delay": 1}))
    client.break_off()
    broker.durable(client_id=client.client_id)
    later = broker.durable(will=Will(end, b"end", 1, props={"will_delay": 1}))
    later.break_off()
    assert watcher.messages_before(end) == []


@covers(v5="3.1.2-8")
@pytest.mark.parametrize("how", ["clean start", "expiry"])
def test_a_delayed_will_is_sent_when_its_session_ends(broker, how):
    watcher, name = broker.client(), topic()
    watcher.subscribe((name, 1))
    will = Will(name, b"gone", 1, props={"will_delay": 3000})
    client = broker.client(clean=True, will=will, props={"session_expiry": 1 if how == "expiry" else 3000})
    client.break_off()
    if how == "clean start":
        broker.client(client_id=client.client_id)
    assert watcher.message().payload == b"gone"


@covers(v5="3.14.4-3 3.1.2-8")
@pytest.mark.parametrize("reason, sent", [(0x00, False), (0x04, True), (0x80, True)])
def test_which_disconnect_takes_the_will_away(broker, reason, sent):
    watcher, name, end = broker.client(), topic(), topic()
    watcher.subscribe((name, 1), (end, 1))
    broker.client(will=Will(name, b"gone", 1)).disconnect(reason)
    assert len(until(watcher, broker.client(), end)) == sent


# DISCONNECT


@covers(v5="3.14.4-1 3.14.4-2 3.14.2-1 3.14.2-2 3.14.0-1 4.13.2-1")
def test_nothing_comes_after_a_disconnect(broker):
    client, sender, name = broker.client(), broker.client(), topic()
    client.subscribe((name, 1))
    client.send(packet(0), packet(PINGREQ))
    sender.publish(name, "1", 1)
    said = client.until_closed()
    kinds = [p.kind for p in said]
    assert kinds.count(DISCONNECT) <= 1 and (DISCONNECT not in kinds or kinds[-1] == DISCONNECT)
    if broker.server:
        assert (said[-1].kind, said[-1].reason) == (DISCONNECT, 0x81)
    assert all("session_expiry" not in p.props for p in said if p.kind == DISCONNECT)


@covers(v5="3.10.4-6 3.11.3-1 3.11.3-2 3.9.3-1 3.9.3-2 3.8.4-7")
def test_every_filter_has_its_reason_in_order(broker):
    client, name = broker.client(), topic()
    assert client.subscribe((f"{name}/1", 0), (f"{name}/2", 2), (f"{name}/3", 1)) == [0, 2, 1]
    assert client.unsubscribe(f"{name}/3", f"{name}/x", f"{name}/1") == [0, 0x11, 0]
