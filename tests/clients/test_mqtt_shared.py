"""Shared subscriptions and subscription identifiers: one member gets a message, and nothing is lost with a member."""

import contextlib
import queue

import pytest
from paho_client import ANSWER_SECONDS, V5, V311, Client
from support import unique, wait_until

both_versions = pytest.mark.parametrize("protocol", [V311, V5], ids=["3.1.1", "5.0"])


def publish_numbers(server, topic, count, qos=1):
    """The payloads that were published, each acknowledged."""
    with Client(server) as sender:
        infos = [sender.paho.publish(topic, str(n), qos) for n in range(count)]
        for info in infos:
            info.wait_for_publish(ANSWER_SECONDS)
        assert all(info.is_published() for info in infos)
    return [str(n) for n in range(count)]


def arrived(client):
    """What has arrived so far, without waiting."""
    payloads = []
    with contextlib.suppress(queue.Empty):
        while True:
            payloads.append(client.messages.get_nowait().payload.decode())
    return payloads


def collect(clients, count):
    """What each client got, when all of them together have `count` messages."""
    got = [[] for _ in clients]

    def all_there():
        for mine, client in zip(got, clients, strict=True):
            mine.extend(arrived(client))
        return sum(map(len, got)) >= count

    wait_until(all_there, lambda: f"{count} messages; there are {[len(mine) for mine in got]}")
    return got


def shared_count(server, topic):
    return server.sql(f"SELECT count(*) FROM system.subscriptions WHERE share = 'g' AND filter = '{topic}'")[0][0]


# Who gets a message


@both_versions
@pytest.mark.parametrize("qos", [0, 1, 2])
def test_members_take_turns(server, protocol, qos):
    topic = f"{unique()}/x"
    with contextlib.ExitStack() as stack:
        members = [stack.enter_context(Client(server, version)) for version in (V311, V5, protocol)]
        alone, other = stack.enter_context(Client(server)), stack.enter_context(Client(server))
        for member in members:
            assert member.subscribe(f"$share/g/{topic}", qos) == qos
        alone.subscribe(topic)
        other.subscribe(f"$share/other/{topic.replace('x', '+')}")
        sent = publish_numbers(server, topic, 30, qos)
        got = collect(members, 30)
        assert [len(mine) for mine in got] == [10, 10, 10]
        assert sorted(sum(got, []), key=int) == sent
        assert collect([alone], 30) == [sent] and collect([other], 30) == [sent], "others get everything"


@both_versions
def test_delivery_takes_the_lower_qos_and_no_retained_message(server, protocol):
    topic = f"{unique()}/x"
    with Client(server, protocol) as member, Client(server) as sender:
        sender.publish(topic, "retained", retain=True)
        member.subscribe(f"$share/g/{topic}", 1)
        sender.publish(topic, "now", qos=2, retain=True)
        message = member.next_is(topic, "now")
        assert (message.qos, message.retain) == (1, False)


@both_versions
def test_who_unsubscribes_gets_no_more(server, protocol):
    topic = f"{unique()}/x"
    with Client(server, protocol) as leaver, Client(server, protocol) as stayer:
        leaver.subscribe(f"$share/g/{topic}")
        stayer.subscribe(f"$share/g/{topic}")
        assert shared_count(server, topic) == 2
        leaver.unsubscribe(f"$share/g/{topic}")
        sent = publish_numbers(server, topic, 6)
        assert collect([leaver, stayer], 6) == [[], sent]
        assert shared_count(server, topic) == 1


@both_versions
def test_the_right_to_the_filter_is_what_counts(server, protocol):
    name = unique()
    with Client(server, protocol, token=server.create_token(f"--subscribe={name}/#")) as device:
        device.subscribe(f"$share/g/{name}/a")
        device.paho.subscribe("$share/g/other/a")
        (code,) = device._answers.get(timeout=ANSWER_SECONDS)
        assert code.is_failure


# A member goes


@both_versions
@pytest.mark.parametrize("goes", ["breaks", "killed"])
def test_what_a_member_did_not_acknowledge_goes_to_another(server, protocol, goes):
    topic = f"{unique()}/x"
    silent = Client(server, protocol, acknowledges=False)
    with Client(server, protocol) as member:
        silent.subscribe(f"$share/g/{topic}")
        member.subscribe(f"$share/g/{topic}")
        sent = publish_numbers(server, topic, 100)
        before = collect([silent, member], 100)
        assert len(before[0]) == 50
        if goes == "breaks":
            silent.break_off()
        else:
            server.sql(f"KILL SESSION '{silent.name}'")
            silent.wait_closed()
        after = collect([member], 50)
        assert after == [before[0]], "in their order, once"
        assert sorted(before[1] + after[0], key=int) == sent


def test_qos_2_in_flight_stays_and_what_waits_goes_to_another(server):
    topic = f"{unique()}/x"
    silent = Client(server, acknowledges=False, receive_maximum=1)
    with Client(server) as member:
        silent.subscribe(f"$share/g/{topic}", 2)
        with Client(server) as sender:
            sender.publish(topic, "first", qos=2)
            silent.next_is(topic, "first")
            for n in range(10):
                sender.publish(topic, str(n), qos=2)
            member.subscribe(f"$share/g/{topic}", 2)
            silent.break_off()
            for n in range(10):
                member.next_is(topic, str(n))
            sender.publish(topic, "end", qos=2)
            member.next_is(topic, "end")


@both_versions
def test_whoever_is_connected_comes_before_those_away(server, protocol):
    topic, name = f"{unique()}/x", unique("durable")
    with Client(server, protocol, name, durable=True) as away:
        away.subscribe(f"$share/g/{topic}")
    with Client(server, protocol) as member:
        member.subscribe(f"$share/g/{topic}")
        sent = publish_numbers(server, topic, 10)
        assert collect([member], 10) == [sent]
    query = f"SELECT queued, in_flight, queued_bytes FROM system.sessions WHERE client = '{name}'"
    assert server.sql(query) == [[0, 0, 0]]


@pytest.mark.parametrize("end", ["stop", "kill9"])
def test_a_group_of_durable_sessions_survives_the_server(make_server, end):
    server = make_server()
    names = [unique("durable") for _ in range(3)]
    for name in names:
        with Client(server, name=name, durable=True) as member:
            member.subscribe("$share/g/a/+", identifier=7)
    sent = publish_numbers(server, "a/x", 30)
    getattr(server, end)()
    server.restart()
    assert server.sql("SELECT client, filter, qos, identifier FROM system.subscriptions WHERE share = 'g'") == [
        [name, "a/+", 1, 7] for name in sorted(names)
    ]
    queued = server.sql("SELECT queued FROM system.sessions ORDER BY client")
    assert queued == [[10], [10], [10]], "those who are away share"
    # One of them ends for good: another one gets what waited for it.
    server.sql(f"KILL SESSION '{names[0]}'")
    with (
        Client(server, name=names[1], durable=True) as second,
        Client(server, name=names[2], durable=True) as third,
    ):
        got = collect([second, third], 30)
        assert sorted(sum(got, []), key=int) == sent
        publish_numbers(server, "a/x", 10)
        assert [len(mine) for mine in collect([second, third], 10)] == [5, 5]


def test_a_clean_start_hands_on_what_waited(server):
    topic, name = f"{unique()}/x", unique("durable")
    with Client(server, name=name, durable=True) as away:
        away.subscribe(f"$share/g/{topic}")
    sent = publish_numbers(server, topic, 10)
    with Client(server) as member:
        member.subscribe(f"$share/g/{topic}")
        with Client(server, name=name):
            assert collect([member], 10) == [sent]


# Subscription identifiers


def test_one_copy_has_all_identifiers(server):
    name = unique()
    with Client(server) as client:
        client.subscribe(f"{name}/a", 0, identifier=3)
        client.subscribe(f"{name}/+", 2, identifier=268_435_455)
        client.subscribe(f"{name}/#", 1)
        client.publish(f"{name}/a", "1", qos=2)
        message = client.next_is(f"{name}/a", "1")
        assert message.qos == 2 and sorted(message.properties.SubscriptionIdentifier) == [3, 268_435_455]
        client.publish(f"{name}/a/b", "2")
        assert not hasattr(client.next_is(f"{name}/a/b", "2").properties, "SubscriptionIdentifier")
        # Subscribing again replaces the identifier.
        client.unsubscribe(f"{name}/+")
        client.subscribe(f"{name}/a", 0, identifier=4)
        client.publish(f"{name}/a", "3")
        assert client.next_is(f"{name}/a", "3").properties.SubscriptionIdentifier == [4]


def test_identifiers_come_with_retained_and_with_queued_messages(make_server):
    server, topic, name = make_server(), "a/x", "durable"
    with Client(server, name=name, durable=True) as client, Client(server) as sender:
        sender.publish(topic, "retained", retain=True)
        client.subscribe("a/+", identifier=9)
        assert client.next_is(topic, "retained").properties.SubscriptionIdentifier == [9]
    publish_numbers(server, topic, 1)
    server.kill9()
    server.restart()
    publish_numbers(server, topic, 1)
    with Client(server, name=name, durable=True) as client:
        assert [client.next_is(topic, "0").properties.SubscriptionIdentifier for _ in range(2)] == [[9], [9]]


def test_no_local_is_about_its_own_filter_only(server):
    name = unique()
    with Client(server) as client:
        client.subscribe(f"{name}/+", 2, identifier=1, no_local=True)
        client.publish(f"{name}/a", "0")
        client.subscribe(f"{name}/a", 1, identifier=2)
        client.publish(f"{name}/a", "1", qos=2)
        message = client.next_is(f"{name}/a", "1")
        assert (message.qos, message.properties.SubscriptionIdentifier) == (1, [2])
        assert server.sql(
            f"SELECT filter, qos, no_local, identifier FROM system.subscriptions WHERE client = '{client.name}'"
        ) == [[f"{name}/+", 2, "yes", 1], [f"{name}/a", 1, "no", 2]]
