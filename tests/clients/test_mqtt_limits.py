"""Limits of MQTT's connections: what one client does, the others do not notice."""

import socket
import ssl
import struct
import time

import pytest
from certificates import Authority
from mqtt_packet import CONNACK, PINGREQ, PUBACK, PUBLISH, V5, V311, connect, packet, publish
from mqtt_wire import Wire, connected, tcp
from paho_client import Client
from support import Server, free_port, unique, wait_until

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


def wire(server, door="mqtt", version=V311, **how):
    """A connection that has said nothing yet; `how` as for `tcp`."""
    return Wire(tcp(server.address(door), **how), version)


def enters(server):
    """Whether the server has a place for one more."""
    with wire(server) as client:
        client.send(connect(V311, unique("enters")))
        answer = client.next()
        return answer is not None and answer.kind == CONNACK


def listener(tmp_path, monkeypatch, text):
    """Makes the file with further listeners that a server started here reads."""
    (tmp_path / "sonde.toml").write_text(text)
    monkeypatch.chdir(tmp_path)


def proxy_header(source, port=4711, command=0x21, tail=b""):
    body = socket.inet_aton(source) + socket.inet_aton("127.0.0.1") + struct.pack(">HH", port, 1883) + tail
    return SIGNATURE + bytes([command, 0x11]) + struct.pack(">H", len(body)) + body


def peers(server):
    return {row[0]: row[1] for row in server.sql("SELECT client, peer FROM system.sessions")}


# Who may connect, and how many


def test_a_listener_has_so_many_places(make_server):
    server = make_server("mqtt.max_connections=2")
    with wire(server) as first, wire(server) as second:
        first.connect(unique("first"))
        second.connect(unique("second"))
        assert not enters(server)
        assert refused(server, "connections") == 1
        # The other listener has places of its own, and a place that is left is free.
        with Client(server, door="mqtt_ws"):
            pass
        first.socket.close()
        wait_until(lambda: enters(server), "a place")


def test_a_rush_is_turned_away_and_then_let_in(make_server):
    server = make_server("mqtt.max_connects_per_second=5")
    sockets = [tcp(server.address("mqtt")) for _ in range(30)]
    wait_until(lambda: refused(server, "rate") > 0, "a refusal")
    for made in sockets:
        made.close()
    wait_until(lambda: enters(server), "the end of the rush")


def test_who_connects_too_often_is_refused_for_a_while(make_server):
    server = make_server("mqtt.flapping_connects=3", "mqtt.flapping_ban=2 seconds")
    name = unique("flapping")

    def connects(version=V311):
        with wire(server, version=version) as client:
            return client.connect(name, None).reason

    assert [connects() for _ in range(3)] == [0, 0, 0]
    assert (connects(), connects(V5)) == (3, 0x9F)
    assert metric(server, "sonde_mqtt_banned") == 1 and refused(server, "flapping") == 2
    assert metric(server, 'sonde_mqtt_connack_total{reason="0x9f"}') == 1
    # Others are not.
    assert enters(server)
    assert name in server.log_tail()
    wait_until(lambda: connects() == 0, "the end of the ban")


def test_nobody_gets_the_client_id_of_another_refused(make_server):
    server = make_server("mqtt.flapping_connects=3", "mqtt.flapping_ban=1h", "mqtt.anonymous=never")
    name = unique("flapping")
    for user in ("victim", "mallory"):
        server.sql(f"CREATE USER {user} PASSWORD 'password of {user}'")
        server.sql(f"GRANT PUBLISH ON '{user}/#' TO {user}")

    def connects(user, expiry):
        who = {"username": user, "password": f"password of {user}", "clean": False}
        with wire(server, version=V5) as client:
            return client.connect(name, None, props={"session_expiry": expiry}, **who).reason

    assert connects("victim", 600) == 0
    assert [connects("mallory", 600) for _ in range(4)] == [0x85, 0x85, 0x85, 0x9F]
    assert metric(server, "sonde_mqtt_banned") == 1
    # Nor where the client id is nobody's for a while.
    assert connects("victim", 0) == 0
    wait_until(lambda: server.sql("SELECT count(*) FROM system.sessions") == [[0]], "the end of the session")
    assert connects("mallory", 0) == 0x9F
    assert connects("victim", 0) == 0


def test_a_client_that_says_nothing_is_closed_and_counted(server):
    before = refused(server, "late")
    with wire(server) as silent, wire(server, "mqtt_ws") as silent_too:
        silent.send(b"\x10")
        assert (silent.bytes_until_closed(), silent_too.bytes_until_closed()) == (b"", b"")
    assert refused(server, "late") == before + 2


# Rates


def test_messages_over_the_rate_are_late_and_not_lost(make_server):
    server = make_server("mqtt.max_messages_per_second=20")
    topic, count = f"{unique()}/n", 60
    with wire(server) as client, Client(server) as other:
        client.connect(unique("fast"), keep_alive=1)
        began = time.monotonic()
        # All of it lies in the server's reach at once; nothing of it is thrown away.
        client.send(*(publish(V311, topic, str(n), 1, n + 1) for n in range(count)))
        for n in range(count):
            client.next_is(PUBACK, n + 1)
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
    with connected(server.address("mqtt"), V311) as client:
        payload = '{"n": %d, "filler": "' + "x" * 1000 + '"}'
        began = time.monotonic()
        client.send(*(publish(V311, f"{table}/n", payload % n) for n in range(60)))
    rows = f"SELECT count(*) FROM {table}"
    wait_until(lambda: server.post_sql(rows).status == 200 and server.sql(rows) == [[60]], "all messages")
    assert time.monotonic() - began > 1.5


# Who does not read


@pytest.mark.parametrize("qos", [0, 1, 2])
def test_who_does_not_read_is_closed_and_holds_up_nobody(make_server, qos):
    server = make_server("mqtt.unread_timeout=1 second")
    topic = f"{unique()}/x"
    with wire(server, receive_buffer=4096) as deaf, Client(server) as sender, Client(server) as reader:
        deaf.connect(unique("deaf"), keep_alive=0)
        assert deaf.subscribe((topic, qos)) == [qos]
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
    with wire(server, receive_buffer=4096) as slow, Client(server) as sender:
        slow.connect(unique("slow"), keep_alive=0)
        assert slow.subscribe((topic, 1)) == [1]
        # 30 MB: more than may wait for a connection, less than may wait for a session.
        for n in range(count):
            sender.publish(topic, f"{n:05}" + "x" * 500_000, 1)
        got = []
        while len(got) < count:
            message = slow.next_is(PUBLISH)
            slow.acknowledge(message)
            got.append(int(message.payload[:5]))
        assert got == list(range(count))


def test_who_publishes_and_never_reads_the_answers_is_not_read(make_server):
    server = make_server("mqtt.unread_timeout=1 second")
    with wire(server, receive_buffer=4096) as deaf, Client(server) as other:
        deaf.connect(unique("deaf"), keep_alive=0)
        deaf.socket.settimeout(1)
        with pytest.raises(OSError):
            # Its answer is as long as itself.
            while True:
                deaf.send(packet(PINGREQ) * 50_000)
        other.publish(f"{unique()}/x", "1", 1)
        wait_until(lambda: metric(server, "sonde_mqtt_unread_closed_total") == 1, "its end")


# Proxies and Unix sockets


def test_a_proxy_tells_the_clients_address(make_server, tmp_path, monkeypatch):
    port = free_port()
    listener(tmp_path, monkeypatch, f"[[mqtt.listener]]\nlisten = '127.0.0.1:{port}'\nproxy_from = ['127.0.0.0/8']\n")
    server = make_server("mqtt.anonymous=always", "mqtt.max_connections_per_address=1")
    address = ("127.0.0.1", port)
    name = unique("behind")
    with Wire(address, V311) as client:
        # In pieces, with something behind the addresses, and CONNECT right after it.
        header = proxy_header("192.0.2.7", tail=b"\x20\0\1x")
        client.send(header[:5])
        client.send(header[5:] + connect(V311, name))
        assert client.next_is(CONNACK).reason == 0
        assert peers(server)[name] == "192.0.2.7:4711"
        # The address is limited as if it had come itself.
        with Wire(address, V311) as second:
            assert second.send(proxy_header("192.0.2.7") + connect(V311, "second")).bytes_until_closed() == b""
        assert refused(server, "address") == 1
        with Wire(address, V311) as third:
            third.send(proxy_header("192.0.2.8") + connect(V311, "third"))
            third.next_is(CONNACK)
    text_form, unknown_command = b"PROXY TCP4 192.0.2.7 127.0.0.1 1 2\r\n", proxy_header("192.0.2.7", command=0x31)
    for bad in (connect(V311, "no header"), text_form, unknown_command):
        with Wire(address, V311) as client:
            assert client.send(bad).bytes_until_closed() == b""
    assert refused(server, "handshake") == 3


def test_behind_a_proxy_nobody_is_of_this_machine(make_server, tmp_path, monkeypatch):
    port = free_port()
    listener(tmp_path, monkeypatch, f"[[mqtt.listener]]\nlisten = '127.0.0.1:{port}'\nproxy_from = ['127.0.0.1']\n")
    make_server()
    with Wire(("127.0.0.1", port), V311) as client:
        client.send(proxy_header("192.0.2.7")).connect(unique("behind"), expect=5)


def test_only_proxies_that_are_listed_may_speak_for_others(make_server, tmp_path, monkeypatch):
    port = free_port()
    listener(tmp_path, monkeypatch, f"[[mqtt.listener]]\nlisten = '127.0.0.1:{port}'\nproxy_from = ['10.0.0.0/8']\n")
    server = make_server()
    with Wire(("127.0.0.1", port), V311) as client:
        assert client.bytes_until_closed() == b""
    assert refused(server, "proxy") == 1


def test_a_proxy_header_comes_before_tls_and_websocket(make_server, tmp_path, monkeypatch):
    authority, port = Authority(tmp_path / "ca"), free_port()
    listener(
        tmp_path,
        monkeypatch,
        f"[[mqtt.listener]]\nlisten = '127.0.0.1:{port}'\nproxy_from = ['127.0.0.1']\ntls = true\n",
    )
    server = make_server(*authority.settings(), "mqtt.anonymous=always")
    plain, name = tcp(("127.0.0.1", port)), unique("behind")
    plain.sendall(proxy_header("192.0.2.9"))
    stream = ssl.create_default_context(cafile=authority.ca).wrap_socket(plain, server_hostname="localhost")
    with connected(stream, V311, name):
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
        return Wire(made, V311)

    with unix() as client:
        client.connect(unique("unix"))
        client.publish(f"{table}/x", '{"n": 1}', 1)
        assert metric(server, 'sonde_mqtt_connections_open{transport="unix"}') == 1
        with unix() as second:
            assert second.bytes_until_closed() == b""
    assert server.sql(f"SELECT n FROM {table}") == [[1.0]]
    # It is somebody's while it is used; what a server leaves that was killed is replaced.
    said = Server(binary, tmp_path / "other").fails_to_start(74)
    assert str(path) in said
    server.kill9()
    assert path.exists()
    server.start()
    with unix() as client:
        client.connect(unique("unix"))
    server.stop()
    assert not path.exists()


def test_an_end_that_we_make_is_counted_by_its_reason(server):
    before = metric(server, 'sonde_mqtt_disconnect_total{reason="0x82"}')
    with connected(server.address("mqtt")) as client:
        assert client.send(connect(V5, "again")).ended().reason == 0x82
    assert metric(server, 'sonde_mqtt_disconnect_total{reason="0x82"}') == before + 1
    assert metric(server, 'sonde_mqtt_connack_total{reason="0x00"}') > 0


def test_version_5_paho_is_told_of_the_ban(make_server):
    server = make_server("mqtt.flapping_connects=1")
    name = unique("flapping")
    with Client(server, V5, name):
        pass
    with pytest.raises(AssertionError, match="CONNACK: Connection rate exceeded"):
        Client(server, V5, name)
