"""What MQTT 3.1.1 and 5.0 ask for alike: sessions, QoS in both directions, order, retained messages, wills, filters."""

import time

import pytest
from conformance import both_versions, covers, every_qos, topic
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
    V311,
    V5,
    Will,
    ack,
    connect,
    packet,
    publish,
    subscribe,
    unsubscribe,
)
from support import unique


def until(receiver, sender, name):
    """What `receiver` gets before a message that `sender` publishes now; `name` must be among its subscriptions."""
    sender.publish(name, "until", 1)
    return receiver.messages_before(name)


# CONNECT and CONNACK


@covers(v5="3.1.4-5 3.2.0-1 3.2.2-1 3.2.2-2 3.2.2-8 4.2.0-1", v311="3.1.4-4 3.2.0-1 3.2.2-1 4.2.0-1 7.0.0-2 7.1.1-1")
@both_versions
def test_connack_is_the_first_packet(broker, version):
    client = broker.wire(version)
    client.send(connect(version, unique("c")), packet(PINGREQ))
    first = client.next()
    assert first.kind == CONNACK, f"{first} before CONNACK"
    assert (first.reason, first.session_present) == (0, False)
    client.ping()


@covers(v5="3.2.0-2 3.1.4-4", v311="3.1.4-3")
@both_versions
def test_one_connack(broker, version):
    client = broker.client(version)
    client.publish(topic(), "1", 1)
    client.ping()
    assert client.waiting == []


@covers(v5="3.1.3-3 3.1.3-5", v311="3.1.3-2 3.1.3-3 3.1.3-5")
@both_versions
@pytest.mark.parametrize("client_id", ["a", "0123456789abcdefghijklm", "nopqrstuvwxyzABCDEFGHIJ", "KLMNOPQRSTUVWXYZ"])
def test_client_ids_that_every_server_takes(broker, version, client_id):
    broker.client(version, client_id).disconnect()


@covers(v5="3.1.3-6", v311="3.1.3-6 3.1.3-7")
@both_versions
def test_clients_without_an_id_are_told_apart(broker, version):
    first, second = broker.client(version, ""), broker.client(version, "")
    first.ping()
    second.ping()


@covers(v5="3.1.4-3 3.1.3-2", v311="3.1.4-2 3.1.3-2")
@both_versions
def test_take_over(broker, version):
    first = broker.client(version)
    second = broker.client(version, first.client_id)
    said = first.until_closed()
    if version == V5:
        assert [(p.kind, p.reason) for p in said] == [(DISCONNECT, 0x8E)]
    else:
        assert said == []
    second.ping()


@covers(v5="3.1.2-20 3.1.2-22 3.2.2-22", v311="3.1.2-23 3.1.2-24")
@both_versions
def test_keep_alive(broker, version):
    """One second, so 1.5 s after the last packet. A client that pings lives on."""
    lively = broker.client(version, keep_alive=1)
    silent = broker.client(version, keep_alive=1)
    connected = time.monotonic()
    while not silent.has_arrived(0.2):
        lively.ping()
        assert time.monotonic() - connected < 10, "it is still there"
    lived = time.monotonic() - connected
    assert [(p.kind, p.reason) for p in silent.until_closed()] in ([], [(DISCONNECT, 0x8D)])
    assert lived > 1, "closed before the keep alive was over"
    lively.ping()


@covers(v5="3.12.4-1", v311="3.12.4-1")
@both_versions
def test_ping(broker, version):
    client = broker.client(version)
    client.send(packet(PINGREQ) * 3)
    assert [client.next().kind for _ in range(3)] == [13] * 3


# Sessions


@covers(
    v5="3.1.2-4 3.1.2-5 3.1.2-6 3.1.2-23 3.2.2-2 3.2.2-3 3.1.4-4",
    v311="3.1.2-4 3.1.2-6 3.1.4-3 3.2.2-1 3.2.2-2 3.2.2-3 4.1.0-2",
)
@both_versions
def test_session_present_says_whether_there_is_one(broker, version):
    client = broker.durable(version)
    assert not client.connack.session_present
    client.disconnect()
    again = broker.durable(version, client.client_id)
    assert again.connack.session_present
    again.disconnect()
    clean = broker.client(version, client.client_id)
    assert not clean.connack.session_present
    clean.disconnect()
    assert not broker.durable(version, client.client_id).connack.session_present


@covers(v5="3.1.2-5 3.1.2-23 4.1.0-1 4.5.0-1", v311="3.1.2-4 3.1.2-5 4.1.0-1 4.5.0-1")
@both_versions
def test_a_session_waits_for_its_client(broker, version):
    name, sender = topic(), broker.client()
    client = broker.durable(version)
    client.subscribe((name, 2))
    client.disconnect()
    for qos in (1, 2):
        sender.publish(name, f"qos {qos}", qos)
    again = broker.durable(version, client.client_id)
    assert again.connack.session_present
    assert [(m.payload, m.qos, m.dup) for m in (again.message(), again.message())] == [
        (b"qos 1", 1, False),
        (b"qos 2", 2, False),
    ]
    sender.publish(name, "now", 1)
    assert again.message().payload == b"now", "the subscription still stands"


@covers(v5="3.1.2-4 4.1.0-2", v311="3.1.2-6")
@both_versions
def test_a_clean_start_forgets(broker, version):
    name, end, sender = topic(), topic(), broker.client()
    client = broker.durable(version)
    client.subscribe((name, 1))
    client.disconnect()
    sender.publish(name, "old", 1)
    clean = broker.client(version, client.client_id)
    clean.subscribe((end, 1))
    sender.publish(name, "also lost", 1)
    assert until(clean, sender, end) == []


@covers(v5="4.1.0-2", v311="3.1.2-6 4.1.0-2 3.1.2-7")
@both_versions
def test_a_session_that_is_not_kept_ends_with_its_connection_and_retained_messages_stay(broker, version):
    name, kept = topic(), topic()
    client = broker.client(version)
    client.subscribe((name, 1))
    client.publish(kept, "state", 1, retain=True)
    client.disconnect()
    again = broker.durable(version, client.client_id)
    assert not again.connack.session_present
    again.subscribe((kept, 1))
    assert again.message().payload == b"state"


# QoS into the server


@covers(
    v5="3.3.4-1 2.2.1-5 3.4.2-1 3.5.2-1 3.7.2-1 4.3.2-4 4.3.3-8 4.3.3-11",
    v311="3.3.4-1 2.3.1-5 2.3.1-6 4.3.2-2 4.3.3-2",
)
@both_versions
@pytest.mark.parametrize("packet_id", [1, 7, 65535])
def test_each_qos_has_its_answers(broker, version, packet_id):
    client, name = broker.client(version), topic()
    client.send(publish(version, name, "0"), publish(version, name, "1", 1, packet_id))
    first = client.next()
    assert (first.kind, first.packet_id) == (PUBACK, packet_id)
    client.send(publish(version, name, "2", 2, packet_id))
    second = client.next()
    assert (second.kind, second.packet_id) == (PUBREC, packet_id)
    client.send(ack(PUBREL, packet_id))
    third = client.next()
    assert (third.kind, third.packet_id, third.reason) == (PUBCOMP, packet_id, 0)


@covers(v5="4.3.2-5 3.3.1-3", v311="4.3.2-2 3.3.1-3")
@both_versions
def test_an_identifier_is_free_after_puback(broker, version):
    client, name = broker.client(version), topic()
    client.subscribe((name, 1))
    for dup in (False, True):
        client.send(publish(version, name, "1", 1, 9, dup=dup))
        client.expect(PUBACK, 9)
        assert client.message().dup is False, "DUP of what comes in says nothing about what goes out"


@covers(v5="4.3.3-10 4.3.3-12", v311="4.3.3-2")
@both_versions
def test_qos_2_is_delivered_once(broker, version):
    client, name, end = broker.client(version), topic(), topic()
    client.subscribe((name, 0), (end, 0))
    client.send(publish(version, name, "1", 2, 5))
    client.expect(PUBREC, 5)
    client.send(publish(version, name, "1", 2, 5, dup=True))
    client.expect(PUBREC, 5)
    client.send(ack(PUBREL, 5))
    client.expect(PUBCOMP, 5)
    client.send(publish(version, name, "2", 2, 5))
    client.expect(PUBREC, 5)
    client.send(ack(PUBREL, 5))
    client.expect(PUBCOMP, 5)
    assert [m.payload for m in until(client, client, end)] == [b"1", b"2"]


@covers(v5="4.3.3-10 4.4.0-1", v311="4.3.3-2 4.4.0-1")
@both_versions
def test_qos_2_is_delivered_once_over_a_broken_connection(broker, version):
    name, end, receiver = topic(), topic(), broker.client()
    receiver.subscribe((name, 0), (end, 0))
    client = broker.durable(version)
    client.send(publish(version, name, "1", 2, 5))
    client.expect(PUBREC, 5)
    client.break_off()
    again = broker.durable(version, client.client_id)
    assert again.connack.session_present
    again.send(publish(version, name, "1", 2, 5, dup=True))
    again.expect(PUBREC, 5)
    again.send(ack(PUBREL, 5))
    again.expect(PUBCOMP, 5)
    # The release may come again too, when its answer was lost.
    again.send(ack(PUBREL, 5))
    assert again.expect(PUBCOMP, 5).reason in ((0, 0x92) if version == V5 else (0,))
    assert [m.payload for m in until(receiver, again, end)] == [b"1"]


@covers(v311="4.6.0-2 4.6.0-3 2.3.1-6", v5="2.2.1-5 4.6.0-2 4.6.0-3")
@both_versions
def test_answers_come_in_order(broker, version):
    client, name = broker.client(version), topic()
    ids = range(1, 16)
    client.send(*(publish(version, name, str(n), 1 + n % 2, n) for n in ids))
    answers = [client.next() for _ in ids]
    for kind, rest in ((PUBACK, 0), (PUBREC, 1)):
        assert [a.packet_id for a in answers if a.kind == kind] == [n for n in ids if n % 2 == rest]


# QoS out of the server


@covers(
    v5="3.8.4-8 4.3.1-1 4.3.2-2 4.3.3-2 2.2.1-2 3.3.1-2 3.9.3-2 3.8.4-7",
    v311="3.8.4-6 4.3.1-1 4.3.2-1 4.3.3-1 2.3.1-5 3.3.1-2 3.9.3-2",
)
@both_versions
@pytest.mark.parametrize("published", [0, 1, 2])
@pytest.mark.parametrize("granted", [0, 1, 2])
def test_the_lower_qos_counts(broker, version, published, granted):
    client, name = broker.client(version), topic()
    assert client.subscribe((name, granted)) == [granted]
    client.publish(name, "x", published)
    found = client.message()
    assert (found.qos, found.dup, found.payload) == (min(published, granted), False, b"x")
    assert (found.packet_id is None) == (found.qos == 0)


@covers(v5="2.2.1-4 4.3.2-1 4.3.3-1 4.3.2-3", v311="2.3.1-1 2.3.1-4 4.3.2-1 4.3.3-1")
@both_versions
def test_identifiers_are_unused_and_not_0(broker, version):
    client, sender, name = broker.client(version), broker.client(), topic()
    client.subscribe((name, 2))
    for n in range(20):
        sender.publish(name, str(n), 1 + n % 2)
    found = [client.message(acknowledge=False) for _ in range(20)]
    ids = [m.packet_id for m in found]
    assert 0 not in ids and len(set(ids)) == 20
    for message in found:
        client.acknowledge(message)


@covers(v5="4.3.3-4 4.3.3-5 4.3.3-3 2.2.1-5 3.6.2-1", v311="4.3.3-1 2.3.1-6")
@both_versions
def test_pubrel_follows_pubrec(broker, version):
    client, sender, name = broker.client(version), broker.client(), topic()
    client.subscribe((name, 2))
    sender.publish(name, "1", 2)
    message = client.message(acknowledge=False)
    client.send(ack(PUBREC, message.packet_id))
    release = client.next()
    assert (release.kind, release.packet_id, release.reason) == (PUBREL, message.packet_id, 0)


@covers(
    v5="4.4.0-1 3.3.1-1 4.3.2-3 4.3.3-3 4.3.3-5 4.3.3-6 4.6.0-1 4.6.0-4",
    v311="4.4.0-1 3.3.1-1 2.3.1-4 4.3.2-1 4.3.3-1 4.6.0-1 4.6.0-4",
)
@both_versions
def test_what_is_not_acknowledged_comes_again(broker, version):
    client, sender, name = broker.durable(version), broker.client(), topic()
    client.subscribe((name, 2))
    for payload, qos in (("a", 1), ("b", 2), ("c", 2), ("d", 1)):
        sender.publish(name, payload, qos)
    first = {m.payload: m for m in (client.message(acknowledge=False) for _ in range(4))}
    # c is half done: from now on only its release may come again.
    released = first[b"c"].packet_id
    client.send(ack(PUBREC, released))
    client.expect(PUBREL, released)
    client.break_off()
    again = broker.durable(version, client.client_id)
    packets = [again.next() for _ in range(4)]
    messages = [p for p in packets if p.kind == PUBLISH]
    assert [(m.payload, m.packet_id, m.dup) for m in messages] == [
        (p, first[p].packet_id, True) for p in (b"a", b"b", b"d")
    ]
    assert [p.packet_id for p in packets if p.kind == PUBREL] == [released]
    again.send(ack(PUBCOMP, released))
    for message in messages:
        again.acknowledge(message)
    again.disconnect()
    last = broker.durable(version, client.client_id)
    sender.publish(name, "e", 1)
    assert last.message().payload == b"e", "what was acknowledged does not come again"


@covers(v5="4.4.0-1", v311="4.4.0-1")
@both_versions
def test_nothing_is_sent_twice_on_one_connection(broker, version):
    client, sender, name = broker.client(version), broker.client(), topic()
    client.subscribe((name, 1))
    sender.publish(name, "1", 1)
    client.message(acknowledge=False)
    for _ in range(3):
        client.ping()
    sender.publish(name, "2", 1)
    assert client.message().payload == b"2"


# Order


@covers(v5="4.6.0-5 4.6.0-6", v311="4.6.0-5 4.6.0-6")
@both_versions
@every_qos
def test_messages_of_a_topic_keep_their_order(broker, version, qos):
    client, sender, name = broker.client(version), broker.client(version), topic()
    client.subscribe((name, qos))
    count = 15  # fewer than any server takes at once
    sender.send(*(publish(version, name, str(n), qos, n + 1 if qos else None) for n in range(count)))
    if qos == 2:  # a server may deliver at once or at the release
        sender.send(*(ack(PUBREL, sender.expect(PUBREC).packet_id) for _ in range(count)))
    assert [int(client.message().payload) for _ in range(count)] == list(range(count))


# SUBSCRIBE and UNSUBSCRIBE


@covers(
    v5="3.8.4-1 3.8.4-2 3.8.4-5 3.8.4-6 3.9.3-1 2.2.1-6 3.9.3-2", v311="3.8.4-1 3.8.4-2 3.8.4-4 3.8.4-5 3.9.3-1 2.3.1-7"
)
@both_versions
def test_suback_answers_each_filter_in_order(broker, version):
    client, name = broker.client(version), topic()
    client.send(subscribe(version, 700, [(f"{name}/a", 2), (f"{name}/b", 0), (f"{name}/c", 1)]))
    answer = client.next()
    assert (answer.kind, answer.packet_id, answer.reasons) == (SUBACK, 700, [2, 0, 1])


@covers(v5="3.8.4-3", v311="3.8.4-3")
@both_versions
def test_an_equal_filter_replaces_the_subscription(broker, version):
    client, name, end = broker.client(version), topic(), topic()
    client.subscribe((name, 2), (end, 0))
    client.subscribe((name, 0))
    client.publish(name, "1", 2)
    assert [(m.payload, m.qos) for m in until(client, client, end)] == [(b"1", 0)]


@covers(v5="3.8.4-4 3.3.1-9", v311="3.8.4-3 3.3.1-6 3.3.1-8")
@both_versions
def test_retained_messages_come_with_each_subscribe(broker, version):
    client, name = broker.client(version), topic()
    client.publish(name, "state", 1, retain=True)
    for qos in (1, 0, 1):
        client.subscribe((name, qos))
        found = client.message()
        assert (found.payload, found.retain, found.qos) == (b"state", True, qos)


@covers(
    v5="3.10.4-1 3.10.4-4 3.10.4-5 3.10.4-6 3.11.3-1 3.11.3-2 2.2.1-6",
    v311="3.10.4-1 3.10.4-4 3.10.4-5 3.10.4-6 2.3.1-7",
)
@both_versions
def test_unsuback_answers_each_filter(broker, version):
    client, name = broker.client(version), topic()
    client.subscribe(f"{name}/a", f"{name}/+")
    client.send(unsubscribe(version, 800, [f"{name}/a", f"{name}/b", f"{name}/+"]))
    answer = client.next()
    assert (answer.kind, answer.packet_id) == (UNSUBACK, 800)
    if version == V5:
        assert answer.reasons == [0, 0x11, 0]


@covers(v5="3.10.4-1 3.10.4-2", v311="3.10.4-1 3.10.4-2")
@both_versions
def test_after_unsubscribe_nothing_comes(broker, version):
    client, name, end = broker.client(version), topic(), topic()
    client.subscribe(f"{name}/+", f"{name}/A", end)
    client.unsubscribe(f"{name}/a")  # not one of them, by character
    client.publish(f"{name}/A", "1", 1)
    client.unsubscribe(f"{name}/+", f"{name}/A")
    client.publish(f"{name}/A", "2", 1)
    # Two subscriptions that match may give two copies.
    assert {m.payload for m in until(client, client, end)} == {b"1"}


@covers(v5="3.10.4-3", v311="3.10.4-3")
@both_versions
def test_unsubscribe_lets_what_is_under_way_end(broker, version):
    client, sender, name = broker.client(version), broker.client(), topic()
    client.subscribe((name, 2))
    sender.publish(name, "1", 2)
    message = client.message(acknowledge=False)
    client.unsubscribe(name)
    client.acknowledge(message)  # PUBREL comes


@covers(v5="3.3.2-3 4.7.1-1 4.7.1-2 4.7.3-4 3.8.3-1", v311="3.3.2-3 4.7.1-2 4.7.1-3 4.7.3-4 4.7.3-1")
@both_versions
@pytest.mark.parametrize(
    "topic_filter, matching, other",
    [
        ("{}/+", ["{}/a", "{}/"], ["{}/a/b", "{}"]),
        ("{}/#", ["{}", "{}/a", "{}/a/b", "{}/"], ["{}x"]),
        ("{}/+/b", ["{}/a/b", "{}//b"], ["{}/b", "{}/a/c", "{}/a/b/c"]),
        ("{}/+/+", ["{}/a/b", "{}//"], ["{}/a"]),
        ("+/{}", ["conf/{}", "/{}"], ["conf//{}", "{}"]),
        ("+/+/{}/#", ["/conf/{}", "conf//{}/x"], ["conf/{}"]),
        ("/{}", ["/{}"], ["{}", "/{}/"]),
        ("{}/a", ["{}/a"], ["{}/A", "{}/a/", "{}/ a"]),
        ("{}/\u00e9", ["{}/\u00e9"], ["{}/e\u0301"]),
        ("{}/\ufeffx", ["{}/\ufeffx"], ["{}/x"]),
        ("{}/a b/ ", ["{}/a b/ "], ["{}/a b/"]),
    ],
)
def test_filters(broker, version, topic_filter, matching, other):
    name, end = unique("f"), topic()
    client = broker.client(version)
    client.subscribe(topic_filter.format(name), end)
    for each in other + matching:
        client.publish(each.format(name), "1")
    assert [m.topic for m in until(client, client, end)] == [each.format(name) for each in matching]


@covers(v5="1.5.4-3", v311="1.5.3-3")
@both_versions
def test_a_byte_order_mark_is_a_character(broker, version):
    client, name = broker.client(version), "\ufeff" + topic("\ufeff")
    client.subscribe(name)
    client.publish(name, "1")
    assert client.message().topic == name


@covers(v5="4.7.2-1", v311="4.7.2-1")
@both_versions
@pytest.mark.parametrize("topic_filter", ["#", "+/{}", "+/#"])
def test_wildcards_do_not_match_topics_with_a_dollar(broker, version, topic_filter):
    # Ours lets only administrators publish such topics.
    who = {"username": "admin", "password": broker.server.token} if broker.server else {}
    client, exact, name, end = broker.client(version, **who), broker.client(version, **who), unique("d"), topic()
    exact.subscribe(f"$conf/{name}")
    client.subscribe(topic_filter.format(name), end)
    client.publish(f"$conf/{name}", "1", 0)
    assert exact.message().topic == f"$conf/{name}", "else nothing is shown"
    assert [m for m in until(client, client, end) if m.topic.startswith("$")] == []


@covers(v5="4.7.3-3", v311="4.7.3-3")
@both_versions
def test_a_long_topic(broker, version):
    """Up to 65,535 bytes by the standard."""
    client, name = broker.client(version), topic("x" * 60_000)
    client.subscribe(name)
    client.publish(name, "1")
    assert client.message().topic == name


@covers(v5="3.3.4-2", v311="3.3.5-1")
@both_versions
def test_overlapping_subscriptions_give_the_highest_qos(broker, version):
    client, name, end = broker.client(version), topic(), topic()
    client.subscribe((f"{name}/#", 0), (f"{name}/+", 2), (f"{name}/a", 1), (end, 0))
    client.publish(f"{name}/a", "1", 2)
    assert max(m.qos for m in until(client, client, end)) == 2


# Retained messages


@covers(v5="3.3.1-5 3.3.1-12", v311="3.3.1-5 3.3.1-6 3.3.1-8 3.3.1-9")
@both_versions
@every_qos
def test_the_last_retained_message_is_kept(broker, version, qos):
    client, late, name = broker.client(version), broker.client(version), topic()
    client.subscribe((name, 2))
    for payload in ("1", "2"):
        client.publish(name, payload, qos, retain=True)
        assert client.message().retain is False, "to a subscription that was there"
    late.subscribe((f"{name}/#", 2))
    found = late.message()
    assert (found.payload, found.retain, found.qos) == (b"2", True, qos)


@covers(v5="3.3.1-6 3.3.1-7", v311="3.3.1-10 3.3.1-11")
@both_versions
def test_an_empty_payload_removes_a_retained_message(broker, version):
    client, late, name, end = broker.client(version), broker.client(version), topic(), topic()
    client.publish(name, "1", 1, retain=True)
    client.subscribe(name)
    client.message()
    client.publish(name, b"", 1, retain=True)
    assert client.message().payload == b"", "it is a message like any other"
    late.subscribe(name, end)
    assert until(late, client, end) == []


@covers(v5="3.3.1-8", v311="3.3.1-12")
@both_versions
def test_messages_that_are_not_retained_leave_retained_ones_alone(broker, version):
    client, late, name = broker.client(version), broker.client(version), topic()
    client.publish(name, "kept", 1, retain=True)
    client.publish(name, "passing", 1)
    client.publish(name, b"", 1)
    late.subscribe(name)
    assert late.message().payload == b"kept"


@covers(v311="3.3.1-7")
@both_versions
def test_a_retained_message_of_qos_0_replaces_the_one_before(broker, version):
    client, late, name = broker.client(version), broker.client(version), topic()
    client.publish(name, "1", 1, retain=True)
    client.publish(name, "2", 0, retain=True)
    client.ping()
    late.subscribe(name)
    assert late.message().payload != b"1"


# Wills


@covers(v5="3.1.2-7 3.1.2-8 3.1.2-14 3.1.2-15 3.1.2-12", v311="3.1.2-8 3.1.2-9 3.1.2-16 3.1.2-17")
@both_versions
@every_qos
@pytest.mark.parametrize("retain", [False, True])
def test_a_will_is_published_as_it_was_given(broker, version, qos, retain):
    watcher, late, name, end = broker.client(version), broker.client(version), topic(), topic()
    watcher.subscribe((name, 2))
    client = broker.client(version, will=Will(name, b"\0gone\xff", qos, retain))
    client.break_off()
    found = watcher.message()
    assert (found.payload, found.qos, found.retain) == (b"\0gone\xff", qos, False)
    late.subscribe((name, 2), (end, 1))
    assert [(m.payload, m.retain) for m in until(late, watcher, end)] == [(b"\0gone\xff", True)] * retain


@covers(v5="3.1.2-8 3.1.2-10 3.14.4-3", v311="3.1.2-8 3.1.2-10 3.1.2-12 3.14.4-3")
@both_versions
def test_disconnect_takes_the_will_away(broker, version):
    watcher, name, end = broker.client(version), topic(), topic()
    watcher.subscribe((name, 1), (end, 1))
    broker.client(version, will=Will(name)).disconnect()
    broker.client(version).break_off()
    assert until(watcher, broker.client(), end) == []


@covers(v5="3.1.2-8", v311="3.1.2-8")
@both_versions
@pytest.mark.parametrize("why", ["a malformed packet", "take-over", "the end of the stream"])
def test_a_will_is_published_whatever_ends_the_connection(broker, version, why):
    watcher, name = broker.client(version), topic()
    watcher.subscribe((name, 1))
    client = broker.client(version, will=Will(name, b"gone", 1))
    if why == "a malformed packet":
        client.send(packet(0))
    elif why == "take-over":
        broker.client(version, client.client_id)
    else:
        client.socket.close()
    assert watcher.message().payload == b"gone"


@covers(v5="3.1.2-10", v311="3.1.2-10")
@both_versions
def test_a_will_is_published_once(broker, version):
    watcher, name, end = broker.client(version), topic(), topic()
    watcher.subscribe((name, 1), (end, 1))
    client = broker.durable(version, will=Will(name, b"gone", 1))
    client.break_off()
    assert watcher.message().payload == b"gone"
    again = broker.durable(version, client.client_id)
    again.break_off()
    broker.durable(version, client.client_id).disconnect()
    assert until(watcher, broker.client(), end) == []


# Bytes


@covers(v5="4.2.0-1", v311="4.2.0-1")
@both_versions
def test_packets_may_come_byte_by_byte_and_many_at_once(broker, version):
    client, name = broker.wire(version), topic()
    stream = connect(version, unique("c")) + subscribe(version, 1, [(name, 1)]) + publish(version, name, "1", 1, 2)
    for byte in stream:
        client.send(bytes([byte]))
    client.expect(SUBACK, 1)
    client.expect(PUBACK, 2)
    client.message()
    client.send(*(publish(version, name, str(n), 0) for n in range(100)))
    assert [int(client.message().payload) for _ in range(100)] == list(range(100))


@covers(v5="4.8.2-3", v311="4.8.0-2")
@both_versions
def test_the_server_goes_on_after_a_connection_breaks_inside_a_packet(broker, version):
    client = broker.client(version)
    client.send(publish(version, topic(), b"x" * 1000, 1, 1)[:500])
    client.break_off()
    broker.serves()


def test_versions_share_topics(broker):
    name = topic()
    old, new = broker.client(V311), broker.client(V5)
    old.subscribe((name, 1))
    new.subscribe((name, 1))
    new.publish(name, "5", 1, props={"user_property": ("a", "b"), "message_expiry": 60})
    old.publish(name, "4", 1)
    assert [m.payload for m in (old.message(), old.message())] == [b"5", b"4"]
    assert [m.payload for m in (new.message(), new.message())] == [b"5", b"4"]
