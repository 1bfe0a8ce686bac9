"""`sonde.v1` with the stubs that protoc generates for Python: rows in and out as Arrow IPC."""

import functools
import importlib
import sys
import tempfile
from pathlib import Path

import pytest
from support import CLIENT_SECONDS

grpc = pytest.importorskip("grpc", reason="grpcio is not installed")
protoc = pytest.importorskip("grpc_tools.protoc", reason="grpcio-tools is not installed")
pa = pytest.importorskip("pyarrow", reason="pyarrow is not installed")

PROTO = Path(__file__).resolve().parents[2] / "proto" / "proto"


@functools.cache
def generated():
    """The generated modules: messages, stubs."""
    sources = [str(path.relative_to(PROTO)) for path in sorted(PROTO.glob("sonde/v1/*.proto"))]
    with tempfile.TemporaryDirectory() as out:
        assert protoc.main(["", f"-I{PROTO}", f"--python_out={out}", f"--grpc_python_out={out}", *sources]) == 0
        sys.path.insert(0, out)
        try:
            return [importlib.import_module(f"sonde.v1.sonde_{kind}") for kind in ("pb2", "pb2_grpc")]
        finally:
            sys.path.remove(out)


class Sonde:
    """The two services, with one token: the administrator's, unless `authorization` is another header or None."""

    def __init__(self, server, authorization=True):
        self.pb, rpc = generated()
        # A proxy cannot reach our loopback.
        self.channel = grpc.insecure_channel(server.endpoints["grpc"], [("grpc.enable_http_proxy", 0)])
        self._query = rpc.QueryStub(self.channel).Query
        self._write = rpc.WriteStub(self.channel).Write
        self._call = {"timeout": CLIENT_SECONDS}
        if authorization:
            header = f"Bearer {server.token}" if authorization is True else authorization
            self._call["metadata"] = [("authorization", header)]

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.channel.close()

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
