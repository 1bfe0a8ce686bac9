"""What is retained: which subscriptions get it, in which portions, and that nobody waits for others who ask for much."""

import threading
import time

from mqtt_packet import (
    PINGREQ,
    PINGRESP,
    PUBACK,
    PUBLISH,
    SUBACK,
    SUBSCRIBE,
    V5,
    V311,
    packet,
    properties,
    publish,
    subscribe,
    text,
    two,
)
from mqtt_wire import Wire, connected, tcp
from support import unique

FILTERS = 1024  # of a SUBSCRIBE: `limits::FILTERS`
DURABLE = {"clean": False, "props": {"session_expiry": 3600}}


def retain(wire, topics, payload=b"x", reason=0):
    """Publishes them all, and has the acknowledgements of all."""
    topics = list(topics)
    for start in range(0, len(topics), 500):
        part = topics[start : start + 500]
        wire.send(*[publish(V5, topic, payload, 1, at + 1, retain=True) for at, topic in enumerate(part)])
        for _ in part:
            found = wire.expect(PUBACK)
            assert found.reason in (reason, 0x10), found


def found(server, topic_filter, qos=0, version=V5, **how):
    """The topics of the retained messages that a new subscriber gets, in their order."""
    with connected(server.address("mqtt"), version, **how) as wire:
        assert wire.subscribe((topic_filter, qos)) == [qos]
        end = unique("end")
        wire.subscribe((end, 0))
        wire.publish(end)
        return [message.topic for message in wire.messages_before(end)]


def test_a_topic_that_ends_in_a_slash_is_another_topic(server):
    name = unique()
    with connected(server.address("mqtt")) as wire:
        retain(wire, [f"{name}{rest}" for rest in ("", "/", "//", "//b", "/b", "-b")])
    for rest, expected in (
        ("/#", ["", "/", "//", "//b", "/b"]),
        ("//#", ["/", "//", "//b"]),
        ("/+", ["/", "/b"]),
        ("/+/b", ["//b"]),
        ("/", ["/"]),
        ("", [""]),
    ):
        assert found(server, name + rest) == [name + it for it in expected], rest


def test_more_than_a_turn_holds_comes_whole_and_in_order(server):
    name = unique()
    topics = [f"{name}/{number:04}" for number in range(2500)]
    with connected(server.address("mqtt")) as wire:
        retain(wire, topics)
    for qos, how in ((0, {}), (1, {}), (1, DURABLE)):
        with connected(server.address("mqtt"), **how) as wire:
            assert wire.subscribe((f"{name}/#", qos)) == [qos]
            got = [wire.message() for _ in topics]
            assert [message.topic for message in got] == topics
            assert all(message.retain and message.qos == qos for message in got)
            wire.hears_nothing()


def test_who_unsubscribes_gets_no_more_of_it(server):
    name = unique()
    with connected(server.address("mqtt")) as wire:
        retain(wire, [f"{name}/{number:04}" for number in range(1500)])
    with connected(server.address("mqtt"), props={"receive_maximum": 1}) as wire:
        wire.subscribe((f"{name}/#", 1))
        first = wire.message(acknowledge=False)
        assert wire.unsubscribe(f"{name}/#") == [0]
        wire.acknowledge(first)
        count = 1
        while True:
            wire.send(packet(PINGREQ))
            answer = wire.next()
            if answer.kind == PINGRESP:
                break
            wire.acknowledge(answer)
            assert wire.expect(PINGRESP)
            count += 1
        assert count < 1500, "what was not looked for yet is not"


def test_a_durable_session_goes_on_with_it_when_its_client_is_back(server):
    name, client_id = unique(), unique("client")
    topics = [f"{name}/{number:04}" for number in range(1500)]
    with connected(server.address("mqtt")) as wire:
        retain(wire, topics)
    slow = {"session_expiry": 3600, "receive_maximum": 1}
    with connected(server.address("mqtt"), V5, client_id, clean=False, props=slow) as wire:
        wire.subscribe((f"{name}/#", 1))
        assert wire.message().topic == topics[0]
        wire.break_off()
    again = connected(server.address("mqtt"), V5, client_id, **DURABLE)
    assert again.connack.session_present
    got = []
    while not got or got[-1] != topics[-1]:
        got.append(again.message().topic)
    assert sorted(set(got) | {topics[0]}) == topics


def test_of_many_filters_each_is_answered_by_a_code_and_each_once(server):
    name = unique()
    with connected(server.address("mqtt")) as wire:
        retain(wire, [f"{name}/a", f"{name}/b"])
    for version, refused in ((V5, 0x97), (V311, 0x80)):
        with connected(server.address("mqtt"), version) as wire:
            filters = [(f"{name}/#", 0)] * FILTERS + [(f"{name}/+", 0)] * 3
            assert wire.subscribe(*filters) == [0] * FILTERS + [refused] * 3
            assert [wire.message().topic for _ in range(2)] == [f"{name}/a", f"{name}/b"]
            wire.hears_nothing()


def test_filters_have_their_limit_and_each_its_own_record(make_server):
    server, client_id = make_server(), unique("client")
    with connected(server.address("mqtt"), V5, client_id, **DURABLE) as wire:
        long = [(f"{number:02}/" + "x" * 30_000, 1) for number in range(9)]
        assert [wire.subscribe(it)[0] for it in long] == [1] * 8 + [0x97], "256 KiB of filters"
        assert wire.subscribe(("y" * 65_000, 1)) == [0x97]
        assert wire.unsubscribe(long[0][0]) == [0]
        assert wire.subscribe(("short", 1), ("gone", 0), (long[1][0], 2)) == [1, 0, 2]
        assert wire.unsubscribe("gone", "never") == [0, 0x11]
    server.kill9()
    server.restart()
    wire = connected(server.address("mqtt"), V5, client_id, **DURABLE)
    assert wire.connack.session_present
    query = f"SELECT filter, qos FROM system.subscriptions WHERE client = '{client_id}' ORDER BY filter"
    assert server.sql(query) == [[long[1][0], 2], *([it, 1] for it, _ in long[2:8]), ["short", 1]]
    wire.publish("short", b"x", 1)
    assert wire.message().topic == "short"
    # With its end everything of it is gone.
    wire.disconnect()
    connected(server.address("mqtt"), V5, client_id, clean=True).disconnect()
    server.kill9()
    server.restart()
    assert server.sql(query) == []


class Pinger(threading.Thread):
    """A client that asks again and again, and the longest that it has waited for an answer."""

    def __init__(self, server):
        super().__init__(daemon=True)
        self.wire = connected(server.address("mqtt"))
        self.worst, self.ended = 0.0, threading.Event()

    def run(self):
        while not self.ended.is_set():
            began = time.monotonic()
            self.wire.ping()
            self.worst = max(self.worst, time.monotonic() - began)

    def end(self):
        self.ended.set()
        self.join()
        return self.worst


def read_away(stream, ended):
    """Takes all that comes, and drops it."""
    stream.settimeout(0.2)
    while not ended.is_set():
        try:
            if not stream.recv(1 << 20):
                return
        except TimeoutError:
            continue
        except OSError:
            return


def test_nobody_waits_for_one_who_subscribes_to_very_much(make_server):
    server = make_server()
    with connected(server.address("mqtt")) as wire:
        retain(wire, [f"r/{number}" for number in range(2000)])
        for topic_filter, count in (("$SYS/#", 110_000), ("r/#", 20_000), ("+/x", 20_000)):
            pinger, ended = Pinger(server), threading.Event()
            pinger.start()
            greedy = connected(server.address("mqtt"))
            body = two(1) + properties(None) + (text(topic_filter) + b"\0") * count
            greedy.send(packet(SUBSCRIBE, body, 2))
            answer = greedy.expect(SUBACK, 1, 60)
            assert answer.reasons == [0] * FILTERS + [0x97] * (count - FILTERS)
            reader = threading.Thread(target=read_away, args=(greedy.socket, ended))
            reader.start()
            for _ in range(20):
                wire.ping()
            worst = pinger.end()
            ended.set()
            reader.join()
            greedy.socket.close()
            assert worst < 5, f"{worst:.1f} s for {topic_filter}"


def test_a_filter_that_nothing_matches_is_found_out_at_once(make_server):
    server = make_server()
    with connected(server.address("mqtt")) as wire:
        retain(wire, [f"devices/{number}/status" for number in range(20_000)])
        wire.publish("devices/7/commands", b"go", 1, retain=True)

        def seconds(topic_filter):
            began = time.monotonic()
            for _ in range(50):
                wire.subscribe((topic_filter, 0))
                wire.ping()
            return time.monotonic() - began

        exact = seconds("devices/7/nothing")
        for topic_filter in ("devices/+/nothing", "nothing/+/status"):
            # A look at each of the topics takes a hundred times as long.
            assert seconds(topic_filter) < 20 * exact + 0.5, topic_filter
        assert [it.kind for it in wire.waiting if it.kind == PUBLISH] == []
        wire.subscribe(("devices/+/commands", 0))
        assert wire.message().topic == "devices/7/commands"


def test_what_is_stored_comes_whole_where_memory_is_scarce(make_server):
    """Some hold messages in flight; QoS 0 to a client that reads has no holes for it, be it retained or of the past."""
    server = make_server("memory.limit=256MiB")
    sender, name, count = connected(server.address("mqtt")), unique("big"), 90
    retain(sender, [f"/{name}/{n}" for n in range(count)], b"x" * 70_000)
    for n in range(count):
        payload = b'{"device": "d%d", "ts": %d, "text": "%s"}' % (n, 1_700_000_000 + n, b"y" * 70_000)
        assert sender.publish(f"{name}/t", payload, 1).reason == 0
    holders = []
    for n in range(4):
        holder = connected(server.address("mqtt"))
        holder.subscribe((f"/{name}-held/{n}", 1))
        for _ in range(7):
            sender.publish(f"/{name}-held/{n}", bytes(990_000), 1)
        holder.message(acknowledge=False)
        holders.append(holder)
    for client_id, topic_filter in {"retained": f"/{name}/#", "past": f"$replay/1600000000/{name}/t"}.items():
        reader = Wire(tcp(server.address("mqtt"), receive_buffer=4096))
        reader.connect(client_id)
        reader.send(subscribe(V5, 1, [(topic_filter, 0)]))
        # It reads, but not at once.
        time.sleep(0.5)
        got = [reader.expect(PUBLISH) for _ in range(count)]
        assert len({(it.topic, it.payload) for it in got}) == count
        ((dropped,),) = server.sql(f"SELECT dropped FROM system.sessions WHERE client = '{client_id}'")
        assert dropped == 0
        reader.socket.close()
