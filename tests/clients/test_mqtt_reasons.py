"""Reason Strings of MQTT 5: what is refused is said in words, to those who want them and where there is room for them."""

import pytest
from mqtt_packet import PUBACK, PUBREC, SUBACK, UNSUBACK, V5, V311, publish, subscribe, unsubscribe
from mqtt_wire import connected
from support import unique

NOT_AUTHORIZED, QUOTA, INVALID_FILTER, INVALID_PAYLOAD, NO_SUBSCRIPTION = 0x87, 0x97, 0x8F, 0x99, 0x11
PASSWORD = "correct horse"


@pytest.fixture(scope="module")
def user(server):
    name = unique("user")
    server.sql(f"CREATE USER {name} PASSWORD '{PASSWORD}'")
    server.sql(f"GRANT ALL ON '{name}/#' TO {name}")
    server.sql(f"DENY PUBLISH ON '{name}/state' RETAIN TO {name}")
    return name


def client(server, user, version=V5, **properties):
    how = {"props": properties} if version == V5 else {}
    return connected(server.address("mqtt"), version, username=user, password=PASSWORD, **how)


def suback(wire, *filters):
    wire.send(subscribe(wire.version, 7, [(f, 1) for f in filters]))
    return wire.expect(SUBACK, 7)


def why(packet):
    return packet.props.get("reason_string", "")


def test_a_subscription_that_is_refused_names_filter_and_right(server, user):
    with client(server, user) as wire:
        granted = suback(wire, f"{user}/a")
        assert granted.reasons == [1] and not why(granted)
        mixed = suback(wire, f"{user}/a", "#", f"{user}/b", "$share/g/plant/+")
        assert mixed.reasons == [1, NOT_AUTHORIZED, 1, NOT_AUTHORIZED]
        said = why(mixed)
        assert "'#'" in said and "GRANT SUBSCRIBE ON '#'" in said
        # The right to a shared subscription is that to its topics.
        assert "'$share/g/plant/+'" in said and "GRANT SUBSCRIBE ON 'plant/+'" in said
        assert user not in said


def test_what_is_no_replay_is_told_what_one_is(server, user):
    with client(server, user) as wire:
        wrong = suback(wire, f"$replay/yesterday/{user}/#", "$replay/-1h/plant/#")
        assert wrong.reasons == [INVALID_FILTER, NOT_AUTHORIZED]
        assert f"'$replay/yesterday/{user}/#': expected" in why(wrong) and "'$replay/-1h/plant/#'" in why(wrong)
        full = suback(wire, *(f"$replay/-{n}m/{user}/#" for n in range(1, 18)))
        assert full.reasons == [1] * 16 + [QUOTA]
        assert "16 replays of a session" in why(full)


def test_too_many_subscriptions_are_told_the_limit(server, user):
    with client(server, user) as wire:
        many = [f"{user}/{n}" for n in range(1025)]
        full = suback(wire, *many)
        assert full.reasons == [1] * 1024 + [QUOTA]
        assert f"'{many[-1]}'" in why(full) and "1024" in why(full) and "unsubscribe" in why(full)


def test_unsubscribing_from_what_there_is_not_is_said(server, user):
    with client(server, user) as wire:
        suback(wire, f"{user}/a")
        wire.send(unsubscribe(V5, 8, [f"{user}/a", f"{user}/b"]))
        answer = wire.expect(UNSUBACK, 8)
        assert answer.reasons == [0, NO_SUBSCRIPTION]
        assert f"'{user}/b'" in why(answer) and f"'{user}/a'" not in why(answer)


@pytest.mark.parametrize("qos, kind", [(1, PUBACK), (2, PUBREC)])
def test_a_message_that_is_refused_names_topic_and_right(server, user, qos, kind):
    with client(server, user) as wire:

        def refused(topic, payload=b"{}", retain=False):
            wire.send(publish(V5, topic, payload, qos, wire.next_id(), retain))
            return wire.expect(kind)

        answer = refused("plant/1")
        assert answer.reason == NOT_AUTHORIZED
        assert "'plant/1'" in why(answer) and f"QoS {qos}" in why(answer) and "GRANT PUBLISH ON" in why(answer)
        answer = refused(f"{user}/state", b'{"value": 1}', retain=True)
        assert answer.reason == NOT_AUTHORIZED and "retain" in why(answer)
        answer = refused("$SYS/broker/version")
        assert answer.reason == NOT_AUTHORIZED and "only the server" in why(answer)


def test_a_payload_that_is_refused_is_told_what_is_wrong(server, user):
    server.sql(f"CREATE SOURCE {user} ON MQTT '{user}/strict' FORMAT JSON INTO {user} WITH (reject_invalid = true)")
    with client(server, user) as wire:
        answer = wire.publish(f"{user}/strict", b'{"value": ', qos=1)
        assert answer.reason == INVALID_PAYLOAD and "JSON" in why(answer) and "dead letter" in why(answer)
        # The same words as in the table.
        ((reason,),) = server.sql(f"SELECT reason FROM system.dead_letters WHERE topic = '{user}/strict'")
        assert reason in why(answer)


def test_nobody_is_told_who_does_not_want_it(server, user):
    with client(server, user, request_problem_information=0) as wire:
        assert suback(wire, "#").props == {}
        assert wire.publish("plant/1", b"{}", qos=1).props == {}
        wire.send(unsubscribe(V5, 8, ["nothing"]))
        assert wire.expect(UNSUBACK, 8).props == {}


def test_what_does_not_fit_is_left_out(server, user):
    with client(server, user, maximum_packet_size=40) as wire:
        answer = suback(wire, "#")
        assert (answer.reasons, why(answer)) == ([NOT_AUTHORIZED], "")
        answer = wire.publish("plant/1", b"{}", qos=1)
        assert (answer.reason, why(answer)) == (NOT_AUTHORIZED, "")


def test_long_names_are_cut(server, user):
    with client(server, user) as wire:
        long = "ü" * 20_000
        answer = suback(wire, *(f"{long}/{n}" for n in range(20)))
        assert set(answer.reasons) == {NOT_AUTHORIZED}
        assert 0 < len(why(answer).encode()) < 4096 and "..." in why(answer)


def test_311_has_return_codes_alone(server, user):
    with client(server, user, V311) as wire:
        assert suback(wire, "#").reasons == [0x80]
        assert wire.publish("plant/1", b"{}", qos=1).reason == 0
