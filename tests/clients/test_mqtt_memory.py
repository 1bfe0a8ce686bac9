"""Promise 7, the ceiling, by what clients of MQTT make the server hold: nothing of it is without a limit in bytes, and whoever
causes a shortage is not the one who gets messages while others get none."""

import threading
import time
from pathlib import Path

from mqtt_packet import PINGREQ, PINGRESP, V5, packet, publish
from mqtt_wire import connected

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


def broker(make_server, *settings):
    """A server that stores nothing that nobody waits for."""
    server = make_server("memory.limit=256MiB", *settings)
    server.sql("DROP SOURCE default")
    return server


def test_long_topics_are_not_remembered(make_server):
    server = broker(make_server)
    with connected(server.address("mqtt")) as listener, connected(server.address("mqtt")) as client:
        listener.subscribe("other")
        memory = Memory(server)
        for n in range(5000):
            client.send(publish(V5, f"{n:08}" + "x" * 65_000))
            if n % 100 == 0:
                client.ping()
        client.ping()
        assert memory.growth() < 100 * MIB
    rows = server.sql("SELECT topic, messages FROM system.topics WHERE messages > 0")
    assert rows == [["(other topics)", 5000]]


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
