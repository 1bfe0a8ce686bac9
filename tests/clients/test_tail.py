"""Following topics without MQTT: server-sent events and gRPC."""

import base64
import http.client
import json
import subprocess
import urllib.parse

import pytest
from grpc_client import Sonde, generated, grpc
from paho_client import Client
from support import CLIENT_SECONDS, unique, wait_until


def basic_header(pair):
    return "Basic " + base64.b64encode(pair.encode()).decode()


class Tail:
    """An open `GET /api/v1/tail`; its events one by one."""

    def __init__(self, server, topic_filter, token=None, basic=None):
        host, port = server.address("http")
        self.connection = http.client.HTTPConnection(host, port, timeout=CLIENT_SECONDS)
        path = "/api/v1/tail?" + urllib.parse.urlencode({"filter": topic_filter})
        credentials = basic_header(basic) if basic else f"Bearer {token or server.token}"
        self.connection.request("GET", path, headers={"Authorization": credentials})
        self.answer = self.connection.getresponse()
        self.status = self.answer.status

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.connection.close()

    def next(self):
        """(name, data) of the next event."""
        name = None
        while True:
            line = self.answer.fp.readline().decode().rstrip("\r\n") if not self.answer.chunked else self._line()
            if line.startswith("event: "):
                name = line.removeprefix("event: ")
            elif line.startswith("data: "):
                return name, json.loads(line.removeprefix("data: "))

    def _line(self):
        line = b""
        while not line.endswith(b"\n"):
            byte = self.answer.read(1)
            assert byte, "the server closed the stream"
            line += byte
        return line.decode().rstrip("\r\n")

    def ended(self):
        """Why it ended; nothing comes behind that."""
        name, data = self.next()
        assert name == "ended", (name, data)
        assert self.answer.read().strip() == b""
        return data["reason"]

    def message(self):
        name, data = self.next()
        assert name == "message", (name, data)
        return data


def test_messages_arrive_with_their_place_in_the_log(server):
    table = unique()
    with Client(server) as client:
        client.publish(f"{table}/kept", '{"value": 1}', retain=True)
        with Tail(server, f"{table}/#") as tail:
            assert tail.status == 200
            client.publish(f"{table}/a", '{"value": 2}')
            client.paho.publish(f"{table}/b", b"\xff\xfe", 0)
            retained, text, binary = tail.message(), tail.message(), tail.message()
    assert (retained["topic"], retained["retained"]) == (f"{table}/kept", True)
    assert "seq" not in retained
    assert (text["topic"], text["payload"], text["qos"]) == (f"{table}/a", '{"value": 2}', 1)
    assert text["seq"] > 0 and not text["retained"] and text["time"].endswith("Z")
    assert binary["payload_base64"] == "//4="


def test_a_tail_is_a_session_that_goes_with_its_client(server):
    tails = lambda: server.sql("SELECT count(*) FROM system.sessions WHERE state = 'tail'")[0][0]
    before = tails()
    with Tail(server, unique() + "/#"):
        wait_until(lambda: tails() == before + 1, "a session of the tail")
    # The end of a connection shows when something is written to it.
    wait_until(lambda: tails() == before, "the end of the session", seconds=40)


def test_who_may_not_subscribe_may_not_follow(server):
    mine, other = unique(), unique()
    token = server.create_token("--subscribe", f"{mine}/#")
    with Tail(server, f"{mine}/#", token) as tail:
        assert tail.status == 200
    for topic_filter in (f"{other}/#", "#", f"{mine}/#/x"):
        with Tail(server, topic_filter, token) as tail:
            assert tail.status in (400, 403)
    assert server.http("GET", "/api/v1/tail?filter=a/%23/b").status == 400
    assert server.http("GET", "/api/v1/tail").status == 400
    assert server.http("GET", "/api/v1/tail?filter=a", token=False).status == 401


def test_a_tail_ends_with_the_token(server):
    topic, name = unique(), unique("token")
    token = server.create_token("--subscribe", f"{topic}/#", name=name)
    second = unique("token")
    others = server.create_token("--subscribe", f"{topic}/#", name=second)
    wanted = f"{topic}/#"
    with Tail(server, wanted, token) as tail, Tail(server, wanted, others) as other, Client(server) as client:
        client.publish(f"{topic}/a", "1")
        assert tail.message()["payload"] == other.message()["payload"] == "1"
        server.sql(f"DROP TOKEN {name}")
        client.publish(f"{topic}/a", "2")
        assert "not valid any more" in tail.ended()
        assert other.message()["payload"] == "2"
        # Nothing has to be published for it.
        server.sql(f"DROP TOKEN {second}")
        assert "not valid any more" in other.ended()


@pytest.mark.parametrize(
    "how", ["REVOKE SUBSCRIBE ON '{0}/#' FROM {1}", "DENY SUBSCRIBE ON '{0}/a' TO {1}", "DROP USER {1}"]
)
def test_a_tail_ends_when_a_right_is_withdrawn_or_the_user_dropped(server, how):
    topic, name = unique(), unique("user")
    server.sql(f"CREATE USER {name} PASSWORD 'a password of its own'")
    server.sql(f"GRANT SUBSCRIBE ON '{topic}/#' TO {name}")
    with Tail(server, f"{topic}/#", basic=f"{name}:a password of its own") as tail, Client(server) as client:
        client.publish(f"{topic}/a", "1")
        assert tail.message()["payload"] == "1"
        # A change that takes nothing away.
        server.sql(f"GRANT SUBSCRIBE ON 'more/#' TO {name}")
        client.publish(f"{topic}/a", "2")
        assert tail.message()["payload"] == "2"
        server.sql(how.format(topic, name))
        client.publish(f"{topic}/a", "3")
        wanted = "not valid any more" if how.startswith("DROP") else "right to subscribe"
        assert wanted in tail.ended()


def test_what_waits_for_a_tail_is_not_read_once_it_may_not_be(server):
    topic, name, count = unique(), unique("token"), 1200
    token = server.create_token("--subscribe", topic, name=name)
    with Tail(server, topic, token) as tail, Client(server) as client:
        # More than the sockets hold, while nobody reads.
        infos = [client.paho.publish(topic, f"{n} {'x' * 20_000}", 1) for n in range(count)]
        infos[-1].wait_for_publish(CLIENT_SECONDS)
        server.sql(f"DROP TOKEN {name}")
        wait_until(lambda: server.sql("SELECT count(*) FROM system.sessions WHERE state = 'tail'") == [[0]], "its end")
        said = tail.answer.read().decode()
    assert said.count("event: message") < count - 100
    assert "not valid any more" in said.rpartition("event: ended")[2]


def test_grpc_says_why_it_ended(server):
    pb, rpc = generated()
    topic, name = unique(), unique("token")
    user = unique("user")
    token = server.create_token("--subscribe", f"{topic}/#", name=name)
    server.sql(f"CREATE USER {user} PASSWORD 'a password of its own'")
    server.sql(f"GRANT SUBSCRIBE ON '{topic}/#' TO {user}")
    basic = basic_header(f"{user}:a password of its own")
    for credentials, change, code in [
        (f"Bearer {token}", f"DROP TOKEN {name}", grpc.StatusCode.UNAUTHENTICATED),
        (basic, f"REVOKE SUBSCRIBE ON '{topic}/#' FROM {user}", grpc.StatusCode.PERMISSION_DENIED),
    ]:
        with Sonde(server, credentials) as sonde, Client(server) as client:
            request = pb.SubscribeRequest(filter=f"{topic}/+")
            call = rpc.SubscribeStub(sonde.channel).Subscribe(request, **sonde._call)
            call.initial_metadata()
            client.publish(f"{topic}/a", "1")
            assert next(call).message.payload == b"1"
            server.sql(change)
            with pytest.raises(grpc.RpcError) as error:
                next(call)
        assert error.value.code() == code


def test_the_command_ends_with_its_token(server, binary):
    topic, name = unique(), unique("token")
    token = server.create_token("--subscribe", f"{topic}/#", name=name)
    command = [binary, "tail", f"{topic}/#", "--data-dir", str(server.data_dir), "--token", token]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        try:
            filters = f"SELECT count(*) FROM system.subscriptions WHERE filter = '{topic}/#'"
            wait_until(lambda: server.sql(filters) == [[1]], "the subscription")
            with Client(server) as client:
                client.publish(f"{topic}/a", "1")
            assert process.stdout.readline() == f"{topic}/a 1\n"
            server.sql(f"DROP TOKEN {name}")
            assert process.wait(CLIENT_SECONDS) != 0
        finally:
            process.kill()


def test_a_reader_that_does_not_keep_up_is_told_what_it_missed(server):
    topic, payload, count = unique(), "x" * 20_000, 4000
    with Tail(server, topic) as tail, Client(server) as client:
        # Far more than the sockets and the buffer hold.
        infos = [client.paho.publish(topic, f"{n} {payload}", 1) for n in range(count)]
        infos[-1].wait_for_publish(CLIENT_SECONDS)
        seen, missed, last = 0, 0, -1
        while last < count - 1:
            name, data = tail.next() if seen + missed < count else (None, None)
            if name is None:
                break
            if name == "dropped":
                missed += data["dropped"]
            else:
                number = int(data["payload"].split()[0])
                assert number == seen + missed, "the place of what is missing is said"
                seen, last = seen + 1, number
            if seen + missed == count:
                break
    assert missed > 0


def test_grpc(server):
    pb, rpc = generated()
    topic = unique()
    with Sonde(server) as sonde, Client(server) as client:
        call = rpc.SubscribeStub(sonde.channel).Subscribe(pb.SubscribeRequest(filter=f"{topic}/+"), **sonde._call)
        call.initial_metadata()
        client.publish(f"{topic}/a", "1")
        client.publish(f"{topic}/b", "2")
        first, second = next(call).message, next(call).message
        call.cancel()
    assert (first.topic, first.payload, first.qos) == (f"{topic}/a", b"1", 1)
    assert (second.topic, second.payload) == (f"{topic}/b", b"2")
    assert first.seq < second.seq and first.time <= second.time


def test_grpc_refuses(server):
    pb, rpc = generated()
    token = server.create_token("--subscribe", "mine/#")
    for filter_, token_, code in [
        ("a/#/b", server.token, grpc.StatusCode.INVALID_ARGUMENT),
        ("other/#", token, grpc.StatusCode.PERMISSION_DENIED),
    ]:
        with Sonde(server, f"Bearer {token_}") as sonde, pytest.raises(grpc.RpcError) as error:
            next(rpc.SubscribeStub(sonde.channel).Subscribe(pb.SubscribeRequest(filter=filter_), **sonde._call))
        assert error.value.code() == code
