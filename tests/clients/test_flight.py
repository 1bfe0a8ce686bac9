"""Arrow Flight SQL with the ADBC driver: queries, metadata, prepared statements, and errors that end nothing else."""

import json

import flight
import pytest
from adbc_driver_manager import Error
from support import TIME_S, unique

COUNT = 20_000


@pytest.fixture(scope="module")
def table(server):
    name = unique("readings")
    rows = [{"device": f"d{n % 10}", "value": n / 2, "ts": TIME_S + n} for n in range(COUNT)]
    answer = server.http("POST", f"/api/v1/write?table={name}", json.dumps(rows), Content_Type="application/json")
    assert answer.status in (200, 204), answer
    return name


@pytest.fixture
def connection(server, table):
    with flight.connect(server) as connection:
        yield connection


@pytest.fixture
def cursor(connection):
    with connection.cursor() as cursor:
        yield cursor


def test_all_rows_arrive_in_order(cursor, table):
    cursor.execute(f"SELECT time, device, value FROM {table} ORDER BY time")
    found = cursor.fetch_arrow_table()
    assert found.column_names == ["time", "device", "value"]
    assert flight.nanoseconds(found["time"]) == [(TIME_S + n) * 10**9 for n in range(COUNT)]
    assert found["value"].to_pylist() == [n / 2 for n in range(COUNT)]
    assert found["device"].to_pylist()[:11] == [f"d{n % 10}" for n in range(11)]


def test_rows_as_python_tuples(cursor, table):
    cursor.execute(f"SELECT device, count(*) AS n FROM {table} GROUP BY device ORDER BY device LIMIT 2")
    assert [column[0] for column in cursor.description] == ["device", "n"]
    assert cursor.fetchall() == [("d0", COUNT // 10), ("d1", COUNT // 10)]


def test_no_rows_still_have_a_schema(cursor, table):
    cursor.execute(f"SELECT time, value FROM {table} WHERE device = 'none'")
    found = cursor.fetch_arrow_table()
    assert (found.column_names, found.num_rows) == (["time", "value"], 0)


def test_a_flight_query_sees_what_http_has_just_written(server, cursor):
    name = unique()
    body = json.dumps([{"device": "d1", "value": 1, "ts": TIME_S}])
    server.http("POST", f"/api/v1/write?table={name}", body, Content_Type="application/json")
    cursor.execute(f"SELECT count(*) FROM {name}")
    assert cursor.fetchone() == (1,)


def test_prepared_statement_with_a_parameter(cursor, table):
    statement = f"SELECT count(*) FROM {table} WHERE device = $1 AND value < $2"
    cursor.adbc_prepare(statement)
    for device, below, expected in [("d1", 1000.0, 200), ("d2", 50.0, 10), ("none", 50.0, 0)]:
        cursor.execute(statement, parameters=(device, below))
        assert cursor.fetchone() == (expected,)


def test_tables_and_columns_are_listed(connection, table):
    catalogs = connection.adbc_get_objects(depth="all", db_schema_filter="public", table_name_filter=table).read_all()
    (catalog,) = [c for c in catalogs.to_pylist() if c["catalog_db_schemas"]]
    assert catalog["catalog_name"] == "sonde"
    (schema,) = catalog["catalog_db_schemas"]
    assert schema["db_schema_name"] == "public"
    (found,) = schema["db_schema_tables"]
    assert found["table_name"] == table
    assert {"time", "device", "value"} <= {column["column_name"] for column in found["table_columns"]}


def test_catalogs_and_schemas_are_listed(connection):
    (catalog,) = connection.adbc_get_objects(depth="db_schemas", catalog_filter="sonde").read_all().to_pylist()
    assert {"public", "system"} <= {schema["db_schema_name"] for schema in catalog["catalog_db_schemas"]}


def test_table_schema(connection, table):
    schema = connection.adbc_get_table_schema(table)
    assert {"time", "device", "value"} <= set(schema.names)
    assert schema.field("time").type == flight.pa.timestamp("ns", tz="UTC")
    assert schema.field("value").type == flight.pa.float64()


def test_table_types(connection):
    assert connection.adbc_get_table_types()


@pytest.mark.parametrize("statement, named", [("SELEC 1", "SELEC"), ("SELECT humidity FROM {}", "humidity")])
def test_an_error_names_the_thing_and_the_connection_goes_on(cursor, table, statement, named):
    with pytest.raises(Error, match=named):
        cursor.execute(statement.format(table))
        cursor.fetchall()
    cursor.execute("SELECT 1")
    assert cursor.fetchone() == (1,)


@pytest.mark.parametrize("authorization", ["Bearer wrong", "none at all"])
def test_no_entry_without_the_token(server, authorization):
    with pytest.raises(Error, match="(?i)unauthenticated"):
        with flight.connect(server, authorization) as connection, connection.cursor() as cursor:
            cursor.execute("SELECT 1")
            cursor.fetchall()
