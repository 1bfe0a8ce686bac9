"""The first thing a newcomer tries: one `mosquitto_pub`, no configuration, and the row comes back by every door."""

import pytest
from support import run, servers, tool, wait_until

PUBLISHED = '{"device":"d1","value":23.5,"ts":1708700000}'
QUERY = "SELECT time, device, value FROM sensors"
ROW = "2024-02-23T14:53:20Z,d1,23.5"


def mosquitto(program, server, *arguments):
    host, port = server.address("mqtt")
    return run(tool(program), "-h", host, "-p", str(port), *arguments)


def paho(server):
    from paho_client import Client  # skips when paho-mqtt is missing

    with Client(server) as client:
        client.publish("sensors/temp", PUBLISHED, qos=0)


publish = {
    "mosquitto_pub": lambda server: mosquitto("mosquitto_pub", server, "-t", "sensors/temp", "-m", PUBLISHED),
    "paho": paho,
}


@pytest.fixture(scope="module", params=publish)
def fed(request, binary, tmp_path_factory):
    """A fresh server that has been sent the message. QoS 0 is not acknowledged, so the row is waited for."""
    with servers(binary, tmp_path_factory) as make:
        server = make()
        publish[request.param](server)
        wait_until(lambda: server.post_sql(QUERY).status == 200 and server.sql(QUERY), "the published row")
        yield server


def test_sonde_sql(fed):
    assert fed.cli("sql", "-c", QUERY, "--format", "csv").splitlines() == ["time,device,value", ROW]


def test_http(fed):
    assert fed.post_sql(QUERY, accept="text/csv").text.splitlines() == ["time,device,value", ROW]
    assert fed.sql(QUERY) == [["2024-02-23T14:53:20Z", "d1", 23.5]]


def test_flight_sql(fed):
    import flight  # skips when the driver is missing

    with flight.connect(fed) as connection, connection.cursor() as cursor:
        cursor.execute(QUERY)
        table = cursor.fetch_arrow_table()
    assert table.column_names == ["time", "device", "value"]
    assert table.num_rows == 1
    assert flight.nanoseconds(table["time"]) == [1_708_700_000 * 10**9]
    assert table["device"].to_pylist() == ["d1"]
    assert table["value"].to_pylist() == [23.5]


def test_the_topic_is_a_tag(fed):
    assert fed.sql("SELECT topic FROM sensors") == [["sensors/temp"]]


def test_the_message_is_accounted_for(fed):
    """`system.topics` answers "I published and see nothing"."""
    rows = fed.sql("SELECT messages, rows, rejected FROM system.topics WHERE topic = 'sensors/temp'")
    assert rows == [[1, 1, 0]]


def test_the_token_is_private(fed):
    assert (fed.data_dir / "admin.token").stat().st_mode & 0o777 == 0o600


def test_mosquitto_sub_receives_what_is_retained(server):
    mosquitto("mosquitto_pub", server, "-t", "retained/here", "-m", '{"value":1}', "-r", "-q", "1")
    assert mosquitto("mosquitto_sub", server, "-t", "retained/here", "-C", "1", "-W", "20") == '{"value":1}\n'
