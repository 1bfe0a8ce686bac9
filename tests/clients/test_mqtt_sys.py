"""The $SYS topics: who may see them, what they say, and that nothing keeps them."""

import pytest
from paho_client import V5, V311, Client
from paho_device import Device
from support import unique

both_versions = pytest.mark.parametrize("protocol", [V311, V5], ids=["3.1.1", "5.0"])

SYS = "$SYS/broker/"
NOT_AUTHORIZED = 0x87

# What dashboards and scripts that were made for Mosquitto read.
NAMES = """
version uptime clients/connected clients/disconnected clients/total clients/maximum clients/expired
messages/received messages/sent messages/stored store/messages/count store/messages/bytes bytes/received bytes/sent
publish/messages/received publish/messages/sent publish/messages/dropped publish/bytes/received publish/bytes/sent
subscriptions/count shared_subscriptions/count load/messages/received/1min load/messages/sent/5min
load/publish/received/15min load/publish/sent/1min load/publish/dropped/1min load/bytes/received/1min
load/bytes/sent/1min load/sockets/1min load/connections/1min
""".split() + ["retained messages/count"]


@pytest.fixture(scope="module")
def watcher_token(server):
    return server.create_token("--subscribe=$SYS/#", "--subscribe=#", "--publish=#", "--publish=$SYS/#")


def values(client, count):
    """The next messages, by the rest of their topic."""
    messages = [client.next() for _ in range(count)]
    return {message.topic.removeprefix(SYS): message for message in messages}


@both_versions
def test_a_new_subscriber_sees_everything_at_once(server, watcher_token, protocol):
    topic = f"{unique()}/x"
    with Client(server, protocol, token=watcher_token) as watcher, Client(server) as other:
        other.publish(topic, "four", retain=True)
        other.subscribe("$share/g/a")
        watcher.subscribe("$SYS/#", 2)
        first = values(watcher, len(NAMES))
        while not set(NAMES) <= set(first):
            first |= values(watcher, 1)
        assert all(message.retain and message.qos == 0 for message in first.values())
        said = {name: message.payload.decode() for name, message in first.items()}
        assert said["version"].startswith("sonde version ")
        number, unit = said["uptime"].split()
        assert unit == "seconds" and int(number) >= 0
        assert 2 <= int(said["clients/connected"]) <= int(said["clients/maximum"])
        assert int(said["subscriptions/count"]) >= 2 and int(said["shared_subscriptions/count"]) >= 1
        assert int(said["retained messages/count"]) >= 1 and int(said["store/messages/bytes"]) >= 4
        assert int(said["publish/bytes/received"]) >= 4 and int(said["bytes/received"]) > 50
        # It goes on, with what has changed.
        later = watcher.next()
        while later.topic != f"{SYS}uptime":
            later = watcher.next()
        assert not later.retain and int(later.payload.split()[0]) > int(number)


@both_versions
def test_one_topic_alone(server, watcher_token, protocol):
    with Client(server, protocol, token=watcher_token) as watcher:
        watcher.subscribe(f"{SYS}clients/connected")
        message = watcher.next()
        assert message.topic == f"{SYS}clients/connected" and message.retain and int(message.payload) >= 1


@both_versions
def test_a_right_to_everything_is_none_to_it(server, protocol):
    with Device(server.address("mqtt"), server.create_token("--subscribe=#"), protocol) as device:
        assert device.subscribe("$SYS/#") >= 0x80
        assert device.subscribe("$share/g/$SYS/#") >= 0x80


@both_versions
def test_nobody_else_publishes_there_and_wildcards_do_not_reach_it(server, watcher_token, protocol):
    topic = f"{unique()}/end"
    with Device(server.address("mqtt"), watcher_token, protocol) as device:
        expected = NOT_AUTHORIZED if protocol == V5 else 0
        assert device.publish(f"{SYS}uptime", "for ever") == expected
        device.subscribe("#")
        device.subscribe("+/broker/uptime")
        device.subscribe(topic)
        assert device.publish(topic, "end") == 0
        # Messages that are retained come first, none of the server's among them.
        while (seen := device.messages.get(timeout=20).topic) != topic:
            assert not seen.startswith("$")
    with Client(server, protocol, token=watcher_token) as watcher:
        watcher.subscribe(f"{SYS}uptime")
        assert watcher.next().payload.endswith(b" seconds")
    assert server.sql("SELECT count(*) FROM system.topics WHERE topic LIKE '$SYS%'") == [[0]]


def test_nothing_waits_for_who_is_away(server, watcher_token):
    name = unique("durable")
    with Client(server, name=name, durable=True, token=watcher_token) as away:
        away.subscribe("$SYS/#", 2)
        away.next()
    with Client(server, token=watcher_token) as watcher:
        watcher.subscribe(f"{SYS}uptime")
        watcher.next()
        # The next round of values has gone out when this comes.
        assert not watcher.next().retain
    assert server.sql(f"SELECT queued FROM system.sessions WHERE client = '{name}'") == [[0]]
