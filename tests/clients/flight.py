"""The ADBC driver for Flight SQL, with the admin token."""

import pytest

pytest.importorskip("adbc_driver_flightsql", reason="adbc-driver-flightsql is not installed")
pa = pytest.importorskip("pyarrow", reason="pyarrow is not installed")
from adbc_driver_flightsql import DatabaseOptions, dbapi  # noqa: E402

RPC_SECONDS = "60"


def connect(server, authorization=None):
    """`authorization`: another value for the header, for tests of who may come in."""
    options = {
        DatabaseOptions.AUTHORIZATION_HEADER.value: authorization or f"Bearer {server.token}",
        DatabaseOptions.TIMEOUT_QUERY.value: RPC_SECONDS,
        DatabaseOptions.TIMEOUT_FETCH.value: RPC_SECONDS,
    }
    # There are no transactions: without this the driver asks to turn autocommit off, and warns.
    return dbapi.connect(f"grpc://{server.endpoints['grpc']}", db_kwargs=options, autocommit=True)


def nanoseconds(column):
    """The values of a time column, which must be Timestamp(ns, UTC)."""
    assert column.type == pa.timestamp("ns", tz="UTC"), column.type
    return column.cast(pa.int64()).to_pylist()
