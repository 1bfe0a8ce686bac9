"""Promise 7, the ceiling, by what clients of MQTT make the server hold: nothing of it is without a limit in bytes, and whoever
causes a shortage is not the one who gets messages while others get none."""

import itertools
import threading
import time
from pathlib import Path

from mqtt_packet import PINGREQ, PINGRESP, PUBACK, PUBLISH, SUBACK, V5, Will, packet, publish, subscribe
from mqtt_wire import Wire, connected, tcp
from support import wait_until

MIB = 1 << 20


class Memory(threading.Thread):
    """The anonymous memory of a server: how much more it has at most than when this began."""

    def __init__(self, server):
        super().__init__(daemon=True)
        self._status = Path(f"/proc/{server.process.pid}/status")
        self._before = self.now()
        self._peak, self._ended = 0, threading.Event()
        self.start()

    def now(self):
        lines = self._status.read_text().splitlines()
        return next(int(line.split()[1]) << 10 for line in lines if line.startswith("RssAnon:"))

    def run(self):
        while not self._ended.wait(0.02):
            self._peak = max(self._peak, self.now())

    def growth(self):
        self._ended.set()
        self.join()
        return max(self._peak, self.now()) - self._before


def broker(make_server, *settings, limit="256MiB"):
    """A server that stores nothing that nobody waits for."""
    server = make_server(f"memory.limit={limit}", *settings)
    server.sql("DROP SOURCE default")
    return server


def test_long_topics_are_not_remembered(make_server):
    server = broker(make_server)
    with connected(server.address("mqtt")) as listener, connected(server.address("mqtt")) as client:
        listener.subscribe("other")
        memory = Memory(server)
        for n in range(1500):
            client.send(publish(V5, f"{n:08}" + "x" * 65_000))
            if n % 100 == 0:
                client.ping()
        client.ping()
        assert memory.growth() < 60 * MIB
    rows = server.sql("SELECT topic, messages FROM system.topics WHERE messages > 0")
    assert rows == [["(other topics)", 1500]]


def test_a_burst_that_many_want_neither_fills_memory_nor_stops_the_loop(make_server):
    server = broker(make_server)
    wanting = [connected(server.address("mqtt")) for _ in range(20)]
    for client in wanting:
        client.subscribe("t")
    bursts = [connected(server.address("mqtt")) for _ in range(2)]
    with connected(server.address("mqtt")) as other:
        memory = Memory(server)
        burst = publish(V5, "t", b"") * 50_000
        sending = [threading.Thread(target=client.socket.sendall, args=(burst,)) for client in bursts]
        for thread in sending:
            thread.start()
        waited = []
        while any(thread.is_alive() for thread in sending) or len(waited) < 3:
            begun = time.monotonic()
            other.send(packet(PINGREQ)).expect(PINGRESP, seconds=60)
            waited.append(time.monotonic() - begun)
        for client in bursts:
            client.ping()
        # 2,000,000 deliveries are 180 MB; what is written waits for sockets that nobody reads.
        assert memory.growth() < 150 * MIB
        assert max(waited) < 10, waited
    for client in [*wanting, *bursts]:
        client.socket.close()


def metric(server, name):
    lines = (line.rpartition(" ") for line in server.http("GET", "/metrics").text.splitlines())
    return next((int(value) for found, _, value in lines if found == name), 0)


def gets_qos_1(server):
    """Whether somebody who has nothing to do with it gets a message."""
    with connected(server.address("mqtt")) as client:
        client.subscribe(("honest", 1))
        client.publish("honest", "hello", qos=1)
        return client.message().payload == b"hello"


def test_what_was_not_acknowledged_stays_in_the_log_when_its_client_goes(make_server):
    server = broker(make_server)  # 32 MiB for messages
    names = [f"device-{n}" for n in range(60)]
    with connected(server.address("mqtt")) as sender:
        memory = Memory(server)
        for n, name in enumerate(names):
            how = {"client_id": name, "props": {"session_expiry": 600}, "clean": False}
            client = connected(server.address("mqtt"), **how)
            client.subscribe((f"d/{n}", 1 + n % 2))
            sender.publish(f"d/{n}", bytes([n]) * 900_000, qos=2)
            assert client.expect(PUBLISH).payload[0] == n
            client.break_off()
        assert memory.growth() < 40 * MIB
    assert gets_qos_1(server)
    assert metric(server, 'sonde_mqtt_memory_steps_total{step="short"}') == 0
    # Each gets it again, under its packet id.
    for n, name in enumerate(names[:4]):
        with connected(server.address("mqtt"), client_id=name, props={"session_expiry": 600}, clean=False) as client:
            again = client.message()
            assert (again.dup, again.qos, again.packet_id, again.payload) == (True, 1 + n % 2, 1, bytes([n]) * 900_000)


def test_wills_have_a_limit_of_their_own(make_server):
    server = broker(make_server)  # 4 MiB for wills, which are in memory twice
    refused = []
    idle = []
    for n in range(60):
        client = Wire(server.address("mqtt"))
        idle.append(client)
        reason = client.connect(f"idle-{n}", expect=None, will=Will(f"w/{n}", b"w" * 60_000)).reason
        refused += [reason] if reason else []
    assert 0x97 in refused and len(refused) < 60 and set(refused) == {0x97}
    assert gets_qos_1(server)
    assert metric(server, 'sonde_mqtt_connections_refused_total{reason="will"}') == len(refused)
    assert metric(server, 'sonde_mqtt_memory_steps_total{step="scarce"}') == 0
    # Those that go make room.
    for client in idle:
        if client.connack.reason == 0:
            client.disconnect()
        client.socket.close()
    with Wire(server.address("mqtt")) as client:
        client.connect("later", will=Will("w", b"w" * 60_000))


def test_a_reader_over_http_that_does_not_read_holds_little(make_server):
    server = broker(make_server)
    reader = tcp(server.address("http"), receive_buffer=4096)
    request = f"GET /api/v1/tail?filter=big HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {server.token}\r\n\r\n"
    reader.sendall(request.encode())
    assert b"200 OK" in reader.recv(4096)
    with connected(server.address("mqtt")) as sender:
        memory = Memory(server)
        for n in range(80):
            sender.publish("big", bytes([n]) * 900_000)
        sender.ping()
        assert memory.growth() < 40 * MIB
    assert gets_qos_1(server)
    assert metric(server, 'sonde_mqtt_memory_steps_total{step="short"}') == 0
    reader.close()


def test_nobody_starves_for_those_who_do_not_acknowledge(make_server):
    server = broker(make_server, "mqtt.queued_bytes=4MiB")  # 32 MiB for messages
    silent = []
    with connected(server.address("mqtt")) as sender:
        memory = Memory(server)
        for n in range(90):
            client = connected(server.address("mqtt"), keep_alive=0)
            client.subscribe((f"d/{n}", 1))
            silent.append(client)
            sender.publish(f"d/{n}", bytes([n]) * 900_000, qos=1)
            if n % 10 == 9:
                assert gets_qos_1(server)
        assert memory.growth() < 120 * MIB
    steps = ["scarce", "short", "gone", "over"]
    assert all(metric(server, f'sonde_mqtt_memory_steps_total{{step="{step}"}}') > 0 for step in steps)
    log = server.log.read_text()
    assert "MQTT messages fill their memory" in log and "there is memory" not in log
    # Who holds most was sent away.
    assert metric(server, "sonde_mqtt_shed_total") > 0
    for client in silent:
        client.socket.close()
    wait_until(lambda: "there is memory for MQTT messages again" in server.log.read_text(), "the end of it", 30)


def test_places_in_queues_are_memory(make_server):
    server = broker(make_server, limit="128MiB")  # 16 MiB for messages
    wanting = []
    for _ in range(60):
        client = connected(server.address("mqtt"), props={"receive_maximum": 1}, keep_alive=0)
        client.subscribe(("t", 1))
        wanting.append(client)
    with connected(server.address("mqtt")) as sender:
        for start in range(0, 5000, 500):
            sender.send(*(publish(V5, "t", b"x", 1, 1 + n) for n in range(500)))
            for n in range(500):
                sender.expect(PUBACK, 1 + n, seconds=60)
    ((queued, dropped),) = server.sql("SELECT sum(queued), sum(dropped) FROM system.sessions")
    # An entry of a queue takes 80 bytes and more; all that was published would be 24 MB of them.
    assert 0 < queued * 80 < 20 * MIB and dropped > 0, (queued, dropped)
    assert gets_qos_1(server)
    for client in wanting:
        client.socket.close()


def test_what_waits_in_the_log_is_noted_in_little_memory(make_server):
    server = broker(make_server)
    sessions, messages = 60, 500
    for n in range(sessions):
        with connected(server.address("mqtt"), client_id=f"d{n:03}", props={"session_expiry": 600}) as client:
            client.subscribe(("cmd/all", 1))
            client.disconnect()
    with connected(server.address("mqtt")) as sender:
        before = metric(server, "sonde_mqtt_backlog_bytes")
        for n in range(messages):
            # One at a time: each is a turn, and so a block for each session, of its own.
            sender.publish("cmd/all", str(n), qos=1)
    wait_until(lambda: metric(server, "sonde_mqtt_backlog_bytes") > before, "notes")
    assert metric(server, "sonde_mqtt_backlog_bytes") < sessions * (messages * 40 + 10_000)
    for _ in range(2):
        ((queued, dropped),) = server.sql("SELECT sum(queued), sum(dropped) FROM system.sessions WHERE state = 'away'")
        assert (queued, dropped) == (sessions * messages, 0)
        server.kill9()
        server.restart()
    with connected(server.address("mqtt"), client_id="d007", props={"session_expiry": 600}, clean=False) as client:
        assert [client.message().payload for _ in range(messages)] == [str(n).encode() for n in range(messages)]


def test_when_notes_of_the_log_fill_their_memory_more_is_dropped(make_server):
    server = broker(make_server, limit="64MiB")  # 1 MiB for them
    filters = ["/".join(levels) for levels in itertools.product("l+", repeat=9)]
    for n in range(10):
        with connected(server.address("mqtt"), client_id=f"d{n}", props={"session_expiry": 600}) as client:
            for i, name in enumerate(filters):
                client.send(subscribe(V5, 1 + i, [(name, 1)], {"subscription_identifier": 200_000_000 + i}))
            for i in range(len(filters)):
                client.expect(SUBACK, 1 + i)
            client.disconnect()
    topics = ["/".join(levels) for levels in itertools.product("lm", repeat=9)]
    with connected(server.address("mqtt")) as sender:
        memory = Memory(server)
        # Each topic by another list of filters: lists that cannot be shared.
        for start in range(0, 512, 64):
            sender.send(*(publish(V5, topic, b"", 1, 1 + n) for n, topic in enumerate(topics[start : start + 64])))
            for n in range(64):
                sender.expect(PUBACK, 1 + n, seconds=60)
        for _ in range(6):
            sender.send(*(publish(V5, topics[0], b"", 1, 1 + n) for n in range(500)))
            for n in range(500):
                sender.expect(PUBACK, 1 + n, seconds=60)
        # Lists that are shared take their place once.
        assert memory.growth() < 60 * MIB
    ((queued, dropped),) = server.sql("SELECT sum(queued), sum(dropped_queue_full) FROM system.sessions")
    assert queued + dropped == 10 * (512 + 3000), (queued, dropped)
    assert gets_qos_1(server)


def test_what_is_too_large_to_be_sent_again_leaves_its_place_to_the_next(make_server):
    server = broker(make_server)
    how = {"client_id": "device", "clean": False}
    with connected(server.address("mqtt"), **how, props={"session_expiry": 600}) as client:
        client.subscribe(("t", 1))
        with connected(server.address("mqtt")) as sender:
            for payload in (b"x" * 2000, b"y" * 2000, b"small"):
                sender.publish("t", payload, qos=1)
        assert [client.expect(PUBLISH).packet_id for _ in range(3)] == [1, 2, 3]
        client.break_off()
    takes = {"session_expiry": 600, "receive_maximum": 1, "maximum_packet_size": 500}
    with connected(server.address("mqtt"), **how, props=takes) as client:
        again = client.message()
        assert (again.payload, again.dup, again.packet_id) == (b"small", True, 3)
        client.hears_nothing()
    assert server.sql("SELECT dropped_too_large FROM system.sessions WHERE client = 'device'") == [[2]]
