"""MQTT over TLS: with the clients that people use, with client certificates, and while certificates change."""

import asyncio
import os
import signal
import socket
import ssl

import pytest
from certificates import Authority
from documents import block, inline
from mqtt_packet import PUBACK, V5, V311, connect, publish
from mqtt_wire import Wire, connected, tcp, tls
from paho_client import Client
from support import CLIENT_SECONDS, TIME_S, Server, run, servers, tool, unique, wait_rows, wait_until

aiomqtt = pytest.importorskip("aiomqtt", reason="aiomqtt is not installed")


@pytest.fixture(scope="module")
def authority(tmp_path_factory):
    return Authority(tmp_path_factory.mktemp("certificates") / "ca")


@pytest.fixture(scope="module")
def server(binary, tmp_path_factory, authority):
    with servers(binary, tmp_path_factory) as make:
        yield make(*authority.settings(), f"tls.client_ca={authority.ca}")


def tls_context(authority, certificate=None, **versions):
    context = ssl.create_default_context(cafile=authority.ca)
    if certificate:
        context.load_cert_chain(*certificate)
    for name, version in versions.items():
        setattr(context, name, version)
    return context


def serial(server, context):
    """The serial number of the certificate that the server shows."""
    with tls(server.address("mqtts"), context) as stream:
        return stream.getpeercert()["serialNumber"]


@pytest.mark.parametrize("resumes", [False, True], ids=["new", "resumed"])
def test_the_usual_asyncio_client_works_as_it_is(server, authority, resumes):
    """aiomqtt with TLS files, a session that is kept, and several subscriptions: as in its own documentation."""
    certificate, key = authority.client("gateway")
    host, port = server.address("mqtts")
    name, site = unique("gateway"), unique("site")
    filters = [(f"{site}/+/telemetry", 1), (f"{site}/+/commands", 2), (f"{site}/+/status", 0)]
    sent = {f"{site}/d1/telemetry": 1, f"{site}/d1/commands": 2, f"{site}/d1/status": 0}

    def client(**how):
        tls_params = aiomqtt.TLSParameters(ca_certs=authority.ca, certfile=certificate, keyfile=key)
        return aiomqtt.Client(host, port, tls_params=tls_params, timeout=CLIENT_SECONDS, **how)

    async def session():
        durable = {"identifier": name, "clean_session": False}
        if resumes:
            async with client(**durable) as first:
                for topic_filter, qos in filters:
                    await first.subscribe(topic_filter, qos=qos)
        async with client(**durable) as device:
            if not resumes:
                for topic_filter, qos in filters:
                    await device.subscribe(topic_filter, qos=qos)
            async with client() as sender:
                for topic, qos in sent.items():
                    await sender.publish(topic, "1", qos=qos)
            got = {}
            async for message in device.messages:
                got[str(message.topic)] = message.qos
                if len(got) == len(sent):
                    return got

    assert asyncio.run(asyncio.wait_for(session(), CLIENT_SECONDS)) == sent


@pytest.mark.parametrize("protocol", [V311, V5], ids=["3.1.1", "5.0"])
@pytest.mark.parametrize("door", ["mqtts", "mqtt_wss"])
@pytest.mark.parametrize("qos", [0, 1, 2])
def test_messages_of_any_size_cross_tls(server, authority, protocol, door, qos):
    topic = f"{unique()}/x"
    over = {"door": door, "tls": tls_context(authority)}
    with Client(server, protocol, **over) as receiver, Client(server, protocol, **over) as sender:
        receiver.subscribe(topic, qos)
        # Less than a record, one, a little more, and many.
        for size in (1, 16_384, 16_400, 700_000):
            payload = "x" * size
            sender.publish(topic, payload, qos)
            receiver.next_is(topic, payload)


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3], ids=["1.2", "1.3"])
def test_both_versions_of_tls_work_and_resume(server, authority, version):
    context = tls_context(authority, minimum_version=version, maximum_version=version)
    with connected(tls(server.address("mqtts"), context), V311) as client:
        session = client.socket.session
        assert session is not None and not client.socket.session_reused
    with connected(tls(server.address("mqtts"), context, session=session), V311) as client:
        assert client.socket.session_reused


def test_a_handshake_may_come_byte_by_byte_and_does_not_hold_up_others(server, authority):
    table = unique()
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    talk = tls_context(authority).wrap_bio(incoming, outgoing, server_hostname="localhost")
    with tcp(server.address("mqtts")) as plain, Client(server) as other:

        def send_slowly():
            for byte in outgoing.read():
                plain.sendall(bytes([byte]))

        while True:
            try:
                talk.do_handshake()
                break
            except ssl.SSLWantReadError:
                send_slowly()
                other.publish(f"{table}/x", {"n": 1, "ts": TIME_S})
                incoming.write(plain.recv(65536))
        talk.write(connect(V311, unique("slow")))
        send_slowly()
        while True:
            try:
                assert talk.read(4) == b"\x20\x02\x00\x00"
                return
            except ssl.SSLWantReadError:
                incoming.write(plain.recv(65536))


@pytest.mark.parametrize(
    "garbage", [b"GET / HTTP/1.1\r\n\r\n", b"\x16\x03\x01\xff\xff" + b"x" * 100_000, connect(V311, "plain")]
)
def test_what_is_not_tls_is_closed(server, garbage):
    with tcp(server.address("mqtts")) as plain:
        try:
            plain.sendall(garbage)
            while plain.recv(65536):
                pass
        except ConnectionResetError:
            pass
    assert server.running


def enters(server, context):
    with connected(tls(server.address("mqtts"), context), V311) as client:
        client.disconnect()


def is_kept_out(server, context):
    """By an alert, which TLS 1.3 lets come after the handshake, or by the end of the connection."""
    try:
        with Wire(tls(server.address("mqtts"), context), V311) as client:
            client.send(connect(V311, unique("stranger")))
            assert client.next() is None
    except (ssl.SSLError, ConnectionError):
        pass


def test_a_client_certificate_is_optional_but_must_be_of_a_known_authority(server, authority, tmp_path):
    enters(server, tls_context(authority, authority.client("known")))
    is_kept_out(server, tls_context(authority, Authority(tmp_path / "stranger").client("stranger")))


def test_a_required_certificate_is_required(make_server, authority):
    server = make_server(*authority.settings(), f"tls.client_ca={authority.ca}", "tls.client_certificates=required")
    is_kept_out(server, tls_context(authority))
    enters(server, tls_context(authority, authority.client("known")))


@pytest.mark.parametrize("how", ["by itself", "by SIGHUP"])
def test_a_new_certificate_is_used_without_a_restart(make_server, tmp_path, how):
    authority = Authority(tmp_path / "ca")
    server = make_server(*authority.settings())
    context = tls_context(authority)
    before = serial(server, context)
    with connected(tls(server.address("mqtts"), context), V311) as client:
        certificate, _ = authority.issue("server")
        if how == "by SIGHUP":
            os.kill(server.process.pid, signal.SIGHUP)
        wait_until(lambda: serial(server, context) != before, "the new certificate")
        # A broken file changes nothing.
        used = serial(server, context)
        with open(certificate, "w") as file:
            file.write("nothing")
        os.kill(server.process.pid, signal.SIGHUP)
        wait_until(lambda: "files cannot be used" in server.log_tail(), "the log")
        assert serial(server, context) == used
        # Who was connected, still is.
        client.send(publish(V311, "t/x", "1", 1, 7))
        client.next_is(PUBACK, 7)


@pytest.mark.parametrize(
    "settings, says",
    [
        (["mqtt.tls_listen=127.0.0.1:0"], "tls.cert"),
        (["tls.cert=/nowhere.pem", "tls.key=/nowhere.key", "mqtt.tls_listen=", "mqtt.wss_listen="], "/nowhere.pem"),
    ],
)
def test_a_server_without_a_usable_certificate_does_not_start(binary, tmp_path, settings, says):
    said = Server(binary, tmp_path, settings).fails_to_start(78 if says == "tls.cert" else 74)
    assert says in said


def test_the_commands_of_the_documentation_make_certificates_that_work(make_server, tmp_path):
    tool("openssl", "openssl")
    run("sh", "-euc", block("listeners.md", "sh", "-keyout ca.key"), cwd=tmp_path)
    server = make_server(
        f"tls.cert={tmp_path}/server.pem",
        f"tls.key={tmp_path}/server.key",
        f"tls.client_ca={tmp_path}/ca.pem",
        "mqtt.tls_listen=127.0.0.1:0",
        "mqtt.wss_listen=127.0.0.1:0",
    )
    enters(server, ssl.create_default_context(cafile=str(tmp_path / "ca.pem")))
    (command,) = inline("listeners.md", "mosquitto_pub")
    tool("mosquitto_pub")
    run("sh", "-euc", command.replace("8883", str(server.address("mqtts")[1])), cwd=tmp_path)
    wait_rows(server, "SELECT topic FROM devices", [["devices/d1/status"]])


def test_connections_are_told_by_transport(server, authority):
    with Client(server, door="mqtts", tls=tls_context(authority)), socket.create_connection(server.address("mqtt_ws")):

        def counted():
            text = server.http("GET", "/metrics").text
            return all(
                f'sonde_mqtt_connections_open{{transport="{transport}"}} 1\n' in text for transport in ("tls", "ws")
            )

        wait_until(counted, "the metrics")
