"""Limits of MQTT's connections: what one client does, the others do not notice."""

import socket
import ssl
import struct
import time

import pytest
import raw_mqtt
from certificates import Authority
from paho_client import V5, Client
from raw_mqtt import DISCONNECT, PUBACK, Raw, publish, subscribe
from support import Server, unique, wait_until

SIGNATURE = b"\r\n\r\n\0\r\nQUIT\n"


def metric(server, name):
    """The value of a metric, 0 where it has none yet."""
    for line in server.http("GET", "/metrics").text.splitlines():
        found, _, value = line.rpartition(" ")
        if found == name:
            return int(value)
    return 0


def refused(server, reason):
    return metric(server, f'sonde_mqtt_connections_refused_total{{reason="{reason}"}}')


def raw(server, door="mqtt", **how):
    return Raw(raw_mqtt.tcp(server.address(door), **how))


def listener(tmp_path, monkeypatch, text):
    """Makes the file with further listeners that a server started here reads."""
    (tmp_path / "sonde.toml").write_text(text)
    monkeypatch.chdir(tmp_path)


def free_port():
    with socket.create_server(("127.0.0.1", 0)) as taken:
        return taken.getsockname()[1]


def proxy_header(source, port=4711, command=0x21, tail=b""):
    body = socket.inet_aton(source) + socket.inet_aton("127.0.0.1") + struct.pack(">HH", port, 1883) + tail
    return SIGNATURE + bytes([command, 0x11]) + struct.pack(">H", len(body)) + body


def peers(server):
    return {row[0]: row[1] for row in server.sql("SELECT client, peer FROM system.sessions")}


# Who may connect, and how many


def test_a_listener_has_so_many_places(make_server):
    server = make_server("mqtt.max_connections=2")
    with raw(server) as first, raw(server) as second, raw(server) as third:
        assert (first.open(), second.open()) == (0, 0)
        third.send(raw_mqtt.connect())
        assert third.next() == (None, b"")
        assert refused(server, "connections") == 1
        # The other listener has places of its own, and a place that is left is free.
        with Client(server, door="mqtt_ws"):
            pass
        first.stream.close()

        def enters():
            with raw(server) as again:
                again.send(raw_mqtt.connect())
                return again.next()[0] == raw_mqtt.CONNACK

        wait_until(enters, "a place")


def test_a_rush_is_turned_away_and_then_let_in(make_server):
    server = make_server("mqtt.max_connects_per_second=5")
    sockets = [raw_mqtt.tcp(server.address("mqtt")) for _ in range(30)]
    wait_until(lambda: refused(server, "rate") > 0, "a refusal")
    for made in sockets:
        made.close()

    def enters():
        with raw(server) as again:
            again.send(raw_mqtt.connect())
            return again.next()[0] == raw_mqtt.CONNACK

    wait_until(enters, "the end of the rush")


def test_who_connects_too_often_is_refused_for_a_while(make_server):
    server = make_server("mqtt.flapping_connects=3", "mqtt.flapping_ban=2 seconds")
    name = unique("flapping")

    def connects(version=4):
        with raw(server) as client:
            return client.open(name=name, version=version)

    assert [connects() for _ in range(3)] == [0, 0, 0]
    assert (connects(), connects(5)) == (3, 0x9F)
    assert metric(server, "sonde_mqtt_banned") == 1 and refused(server, "flapping") == 2
    assert metric(server, 'sonde_mqtt_connack_total{reason="0x9f"}') == 1
    # Others are not.
    with raw(server) as other:
        assert other.open(name=unique()) == 0
    assert name in server.log_tail()
    wait_until(lambda: connects() == 0, "the end of the ban")


def test_a_client_that_says_nothing_is_closed_and_counted(server):
    before = refused(server, "late")
    with raw(server) as silent, raw(server, "mqtt_ws") as silent_too:
        silent.send(b"\x10")
        assert (silent.next(), silent_too.next()) == ((None, b""), (None, b""))
    assert refused(server, "late") == before + 2


# Rates


def test_messages_over_the_rate_are_late_and_not_lost(make_server):
    server = make_server("mqtt.max_messages_per_second=20")
    topic, count = f"{unique()}/n", 60
    with raw(server) as client, Client(server) as other:
        assert client.open(keep_alive=1) == 0
        began = time.monotonic()
        # All of it lies in the server's reach at once; nothing of it is thrown away.
        client.send(*(publish(topic, str(n), 1, n + 1) for n in range(count)))
        for n in range(count):
            assert client.next() == (PUBACK, struct.pack(">H", n + 1))
            if n == 25:
                # Meanwhile others are not slowed down.
                asked = time.monotonic()
                other.publish(topic + "/other", "1", 1)
                assert time.monotonic() - asked < 1
        # The first second's worth comes at once; keep alive does not run while we do not read.
        assert time.monotonic() - began > (count - 20) / 20 * 0.8
    assert metric(server, "sonde_mqtt_paused_total") > 0


def test_bytes_over_the_rate_are_late_and_not_lost_even_if_the_client_goes(make_server):
    server = make_server("mqtt.max_bytes_per_second=20000")
    table = unique()
    with raw(server) as client:
        assert client.open() == 0
        payload = '{"n": %d, "filler": "' + "x" * 1000 + '"}'
        began = time.monotonic()
        client.send(*(publish(f"{table}/n", payload % n) for n in range(60)))
    rows = f"SELECT count(*) FROM {table}"
    wait_until(lambda: server.post_sql(rows).status == 200 and server.sql(rows) == [[60]], "all messages")
    assert time.monotonic() - began > 1.5


# Who does not read


@pytest.mark.parametrize("qos", [0, 1, 2])
def test_who_does_not_read_is_closed_and_holds_up_nobody(make_server, qos):
    server = make_server("mqtt.unread_timeout=1 second")
    topic = f"{unique()}/x"
    with raw(server, receive_buffer=4096) as deaf, Client(server) as sender, Client(server) as reader:
        assert deaf.open() == 0
        deaf.send(subscribe(topic, qos))
        assert deaf.next()[0] == 9
        reader.subscribe(topic, qos)
        payload = "x" * 500_000
        for n in range(40):
            asked = time.monotonic()
            sender.publish(topic, payload, 1)
            reader.next_is(topic, payload)
            assert time.monotonic() - asked < 5
        wait_until(lambda: metric(server, "sonde_mqtt_unread_closed_total") == 1, "its end")
    assert "does not read" in server.log_tail()


def test_what_waits_for_a_slow_reader_comes_once_it_reads(make_server):
    server = make_server()
    topic, count = f"{unique()}/x", 60
    with raw(server, receive_buffer=4096) as slow, Client(server) as sender:
        assert slow.open() == 0
        slow.send(subscribe(topic, 1))
        assert slow.next()[0] == 9
        # 30 MB: more than may wait for a connection, less than may wait for a session.
        for n in range(count):
            sender.publish(topic, f"{n:05}" + "x" * 500_000, 1)
        got = []
        while len(got) < count:
            kind, body = slow.next()
            assert kind == raw_mqtt.PUBLISH
            at = 2 + len(topic)
            slow.send(raw_mqtt.packet(0x40, body[at : at + 2]))
            got.append(int(body[at + 2 : at + 7]))
        assert got == list(range(count))


def test_who_publishes_and_never_reads_the_answers_is_not_read(make_server):
    server = make_server("mqtt.unread_timeout=1 second")
    with raw(server, receive_buffer=4096) as deaf, Client(server) as other:
        assert deaf.open() == 0
        deaf.stream.settimeout(1)
        with pytest.raises(OSError):
            # PINGREQ: its answer is as long as itself.
            while True:
                deaf.send(b"\xc0\x00" * 50_000)
        other.publish(f"{unique()}/x", "1", 1)
        wait_until(lambda: metric(server, "sonde_mqtt_unread_closed_total") == 1, "its end")


# Proxies and Unix sockets


def test_a_proxy_tells_the_clients_address(make_server, tmp_path, monkeypatch):
    port = free_port()
    listener(
        tmp_path, monkeypatch, f"[[mqtt.listener]]\nlisten = '127.0.0.1:{port}'\nproxy_from = ['127.0.0.0/8']\n"
    )
    server = make_server("mqtt.anonymous=always", "mqtt.max_connections_per_address=1")
    address = ("127.0.0.1", port)
    name = unique("behind")
    with Raw(raw_mqtt.tcp(address)) as client:
        # In pieces, with something behind the addresses, and CONNECT right after it.
        header = proxy_header("192.0.2.7", tail=b"\x20\0\1x")
        client.send(header[:5])
        client.send(header[5:] + raw_mqtt.connect(name=name))
        assert client.next() == (raw_mqtt.CONNACK, b"\0\0")
        assert peers(server)[name] == "192.0.2.7:4711"
        # The address is limited as if it had come itself.
        with Raw(raw_mqtt.tcp(address)) as second:
            second.send(proxy_header("192.0.2.7") + raw_mqtt.connect())
            assert second.next() == (None, b"")
        assert refused(server, "address") == 1
        with Raw(raw_mqtt.tcp(address)) as third:
            third.send(proxy_header("192.0.2.8") + raw_mqtt.connect())
            assert third.next()[0] == raw_mqtt.CONNACK
    for bad in (raw_mqtt.connect(), b"PROXY TCP4 192.0.2.7 127.0.0.1 1 2\r\n", proxy_header("192.0.2.7", command=0x31)):
        with Raw(raw_mqtt.tcp(address)) as client:
            client.send(bad)
            assert client.next() == (None, b"")
    assert refused(server, "handshake") == 3


def test_behind_a_proxy_nobody_is_of_this_machine(make_server, tmp_path, monkeypatch):
    port = free_port()
    listener(tmp_path, monkeypatch, f"[[mqtt.listener]]\nlisten = '127.0.0.1:{port}'\nproxy_from = ['127.0.0.1']\n")
    make_server()
    with Raw(raw_mqtt.tcp(("127.0.0.1", port))) as client:
        client.send(proxy_header("192.0.2.7"))
        assert client.open() == 5


def test_only_proxies_that_are_listed_may_speak_for_others(make_server, tmp_path, monkeypatch):
    port = free_port()
    listener(tmp_path, monkeypatch, f"[[mqtt.listener]]\nlisten = '127.0.0.1:{port}'\nproxy_from = ['10.0.0.0/8']\n")
    server = make_server()
    with Raw(raw_mqtt.tcp(("127.0.0.1", port))) as client:
        assert client.next() == (None, b"")
    assert refused(server, "proxy") == 1


def test_a_proxy_header_comes_before_tls_and_websocket(make_server, tmp_path, monkeypatch):
    authority, port = Authority(tmp_path / "ca"), free_port()
    listener(
        tmp_path,
        monkeypatch,
        f"[[mqtt.listener]]\nlisten = '127.0.0.1:{port}'\nproxy_from = ['127.0.0.1']\ntls = true\n",
    )
    server = make_server(*authority.settings(), "mqtt.anonymous=always")
    plain, name = raw_mqtt.tcp(("127.0.0.1", port)), unique("behind")
    plain.sendall(proxy_header("192.0.2.9"))
    stream = ssl.create_default_context(cafile=authority.ca).wrap_socket(plain, server_hostname="localhost")
    with Raw(stream) as client:
        assert client.open(name=name) == 0
        assert peers(server)[name] == "192.0.2.9:4711"


def test_a_unix_socket_is_this_machine(make_server, tmp_path, monkeypatch, binary):
    path = tmp_path / "mqtt.sock"
    listener(tmp_path, monkeypatch, f"[[mqtt.listener]]\nlisten = 'unix:{path}'\nmax_connections = 1\n")
    server = make_server()
    assert path.stat().st_mode & 0o777 == 0o660
    table = unique()

    def unix():
        made = socket.socket(socket.AF_UNIX)
        made.settimeout(20)
        made.connect(str(path))
        return Raw(made)

    with unix() as client:
        assert client.open() == 0
        client.send(publish(f"{table}/x", '{"n": 1}', 1))
        assert client.next()[0] == PUBACK
        assert metric(server, 'sonde_mqtt_connections_open{transport="unix"}') == 1
        with unix() as second:
            assert second.next() == (None, b"")
    assert server.sql(f"SELECT n FROM {table}") == [[1.0]]
    # It is somebody's while it is used; what a server leaves that was killed is replaced.
    said = Server(binary, tmp_path / "other").fails_to_start(74)
    assert str(path) in said
    server.kill9()
    assert path.exists()
    server.start()
    with unix() as client:
        assert client.open() == 0
    server.stop()
    assert not path.exists()


def test_an_end_that_we_make_is_counted_by_its_reason(server):
    before = metric(server, 'sonde_mqtt_disconnect_total{reason="0x82"}')
    with raw(server) as client:
        assert client.open(version=5) == 0
        client.send(raw_mqtt.connect(version=5))
        kind, body = client.next()
        assert (kind, body[:1]) == (DISCONNECT, b"\x82")
    assert metric(server, 'sonde_mqtt_disconnect_total{reason="0x82"}') == before + 1
    assert metric(server, 'sonde_mqtt_connack_total{reason="0x00"}') > 0


def test_version_5_paho_is_told_of_the_ban(make_server):
    server = make_server("mqtt.flapping_connects=1")
    name = unique("flapping")
    with Client(server, V5, name):
        pass
    with pytest.raises(AssertionError, match="CONNACK: Connection rate exceeded"):
        Client(server, V5, name)
