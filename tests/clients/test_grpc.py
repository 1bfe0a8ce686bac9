"""`sonde.v1` with the stubs that protoc generates for Python: rows in and out as Arrow IPC."""

import importlib
import sys
from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace

import pytest
from support import CLIENT_SECONDS, TIME_S, unique

grpc = pytest.importorskip("grpc", reason="grpcio is not installed")
protoc = pytest.importorskip("grpc_tools.protoc", reason="grpcio-tools is not installed")
pa = pytest.importorskip("pyarrow", reason="pyarrow is not installed")

PROTO = Path(__file__).resolve().parents[2] / "proto" / "proto"
TIME = pa.array([TIME_S, TIME_S + 1], pa.timestamp("s", tz="UTC"))
TIME_NS = [TIME_S * 10**9, (TIME_S + 1) * 10**9]


@pytest.fixture(scope="module")
def generated(tmp_path_factory):
    """The generated modules: messages as `pb`, stubs as `rpc`."""
    out = str(tmp_path_factory.mktemp("generated"))
    sources = [str(path.relative_to(PROTO)) for path in sorted(PROTO.glob("sonde/v1/*.proto"))]
    assert protoc.main(["", f"-I{PROTO}", f"--python_out={out}", f"--grpc_python_out={out}", *sources]) == 0
    sys.path.insert(0, out)
    try:
        modules = [importlib.import_module(f"sonde.v1.sonde_{kind}") for kind in ("pb2", "pb2_grpc")]
    finally:
        sys.path.remove(out)
    return SimpleNamespace(pb=modules[0], rpc=modules[1])


class Sonde:
    """The two services, with one token."""

    def __init__(self, generated, server, authorization):
        self.pb = generated.pb
        # A proxy cannot reach our loopback.
        self.channel = grpc.insecure_channel(server.endpoints["grpc"], [("grpc.enable_http_proxy", 0)])
        self._query = generated.rpc.QueryStub(self.channel).Query
        self._write = generated.rpc.WriteStub(self.channel).Write
        self._call = {"timeout": CLIENT_SECONDS}
        if authorization:
            self._call["metadata"] = [("authorization", authorization)]

    def stream(self, sql):
        return self._query(self.pb.QueryRequest(sql=sql), **self._call)

    def query(self, sql):
        answer = b"".join(part.arrow_ipc for part in self.stream(sql))
        return pa.ipc.open_stream(answer).read_all()

    def write_ipc(self, table, arrow_ipc, tags=()):
        return self._write(self.pb.WriteRequest(table=table, arrow_ipc=arrow_ipc, tags=tags), **self._call)

    def write(self, table, columns, tags=()):
        rows = pa.table(columns)
        sink = pa.BufferOutputStream()
        with pa.ipc.new_stream(sink, rows.schema) as stream:
            stream.write_table(rows)
        return self.write_ipc(table, sink.getvalue().to_pybytes(), tags)


@pytest.fixture(scope="module")
def sonde(generated, server):
    client = Sonde(generated, server, f"Bearer {server.token}")
    with client.channel:
        yield client


def test_rows_go_in_and_come_out(sonde):
    table = unique()
    answer = sonde.write(table, {"time": TIME, "site": ["s1", "s2"], "value": [1.5, None]}, tags=["site"])
    assert (answer.rows, list(answer.errors)) == (2, [])
    found = sonde.query(f"SELECT time, site, value FROM {table} ORDER BY time")
    assert found["time"].type == pa.timestamp("ns", tz="UTC")
    assert found["time"].cast(pa.int64()).to_pylist() == TIME_NS
    assert found["site"].to_pylist() == ["s1", "s2"]
    assert found["value"].to_pylist() == [1.5, None]


@pytest.mark.parametrize(
    "time", [TIME.cast(pa.timestamp("us", tz="UTC")), pa.array(TIME_NS, pa.int64())], ids=["us", "int"]
)
def test_any_unit_of_time(sonde, time):
    table = unique()
    sonde.write(table, {"time": time, "value": [1.5, 2.5]})
    assert sonde.query(f"SELECT time FROM {table} ORDER BY time")["time"].cast(pa.int64()).to_pylist() == TIME_NS


def test_types_are_kept(sonde):
    table = unique()
    columns = {"f": pa.array([0.1]), "i": pa.array([-(1 << 60)]), "u": pa.array([(1 << 64) - 1], pa.uint64())}
    columns |= {"b": pa.array([True]), "s": pa.array(["grüße"])}
    sonde.write(table, {"time": TIME[:1], **columns})
    found = sonde.query(f"SELECT f, i, u, b, s FROM {table}")
    assert found.to_pylist() == pa.table(columns).to_pylist()
    assert [found[name].type for name in "fiub"] == [pa.float64(), pa.int64(), pa.uint64(), pa.bool_()]


def test_a_tag_identifies_the_point(sonde):
    table, now = unique(), TIME.take(pa.array([0, 0]))
    sonde.write(table, {"time": now, "site": ["s1", "s2"], "value": [1.0, 2.0]}, tags=["site"])
    sonde.write(table, {"time": now[:1], "site": ["s2"], "value": [3.0]})
    assert sonde.query(f"SELECT value FROM {table} ORDER BY site")["value"].to_pylist() == [1.0, 3.0]


def test_a_refused_row_is_named_and_the_others_are_stored(sonde):
    table = unique()
    long_ago = datetime(1999, 12, 31, tzinfo=UTC)
    time = pa.array([datetime.fromtimestamp(TIME_S, UTC), long_ago], pa.timestamp("us", tz="UTC"))
    answer = sonde.write(table, {"time": time, "value": [1.5, 2.5]})
    assert (answer.rows, [error.row for error in answer.errors]) == (1, [1])
    assert "time" in answer.errors[0].reason
    assert sonde.query(f"SELECT value FROM {table}")["value"].to_pylist() == [1.5]


def test_a_large_answer_comes_in_many_messages(sonde):
    table, count = unique(), 100_000
    sonde.write(table, {"time": pa.array(range(TIME_NS[0], TIME_NS[0] + count)), "n": pa.array(range(count))})
    parts = [part.arrow_ipc for part in sonde.stream(f"SELECT n FROM {table} ORDER BY time")]
    assert len(parts) > 2
    assert pa.ipc.open_stream(b"".join(parts)).read_all()["n"].to_pylist() == list(range(count))

    given_up = sonde.stream(f"SELECT n FROM {table}")
    next(given_up)
    given_up.cancel()
    assert sonde.query(f"SELECT count(*) AS n FROM {table}").to_pylist() == [{"n": count}]


def test_no_rows_still_have_a_schema(sonde):
    table = unique()
    sonde.write(table, {"time": TIME, "value": [1.5, 2.5]})
    found = sonde.query(f"SELECT time, value FROM {table} WHERE value > 100")
    assert (found.column_names, found.num_rows) == (["time", "value"], 0)


@pytest.mark.parametrize("sql, named", [("SELEC 1", "SELEC"), ("SELECT humidity FROM system.settings", "humidity")])
def test_an_error_names_the_thing(sonde, sql, named):
    with pytest.raises(grpc.RpcError) as raised:
        sonde.query(sql)
    assert raised.value.code() == grpc.StatusCode.INVALID_ARGUMENT
    assert named in raised.value.details() and "\n" not in raised.value.details()
    assert sonde.query("SELECT 1 AS one").to_pylist() == [{"one": 1}]


@pytest.mark.parametrize("body", [b"", b"not arrow at all", b"\xff\xff\xff\xff\xff\xff\xff\x7f"])
def test_a_broken_stream_is_refused(sonde, body):
    with pytest.raises(grpc.RpcError) as raised:
        sonde.write_ipc(unique(), body)
    assert raised.value.code() == grpc.StatusCode.INVALID_ARGUMENT


@pytest.mark.parametrize("authorization", [None, "Bearer wrong"])
def test_no_entry_without_the_token(generated, server, authorization):
    client = Sonde(generated, server, authorization)
    with client.channel:
        for call in (lambda: client.query("SELECT 1"), lambda: client.write_ipc("t", b"")):
            with pytest.raises(grpc.RpcError) as raised:
                call()
            assert raised.value.code() == grpc.StatusCode.UNAUTHENTICATED
