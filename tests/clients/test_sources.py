"""From messages to rows: sources, the default mapping, dead letters, and what is delivered but not stored."""

import json
import re
from datetime import UTC, datetime, timedelta

import pytest
from paho_client import V5, V311, Client
from paho_device import Device
from support import TIME_S, unique, wait_until

PAYLOAD_INVALID = 0x99
TIME = "2024-02-23T14:53:20Z"  # TIME_S


@pytest.fixture(scope="module")
def device(server):
    with Device(server.address("mqtt")) as device:
        yield device


def source(server, topic_filter, form="JSON", options="", name=None, table=None):
    """A new source into a table of its own, unless one is given. The table."""
    table = table or unique("sourced")
    server.sql(f"CREATE SOURCE {name or table} ON MQTT '{topic_filter}' FORMAT {form} INTO {table} {options}")
    return table


def letters(server, topic):
    """(payload, encoding, reason) of the dead letters of a topic."""
    return server.sql(
        f"SELECT payload, encoding, reason FROM system.dead_letters WHERE topic = '{topic}' ORDER BY time"
    )


def reason(server, topic):
    ((_, _, reason),) = letters(server, topic)
    assert "\n" not in reason
    return reason


def is_unknown(server, table):
    return server.post_sql(f'SELECT * FROM "{table}"').status == 400


# CREATE SOURCE


def test_levels_become_tags(server, device):
    root = unique("acme")
    table = source(server, f"{root}/{{site}}/+/{{device}}/reading")
    device.publish(f"{root}/s1/any/d1/reading", {"value": 1.5, "site": "forged", "ts": TIME_S})
    device.publish(f"{root}/s1/any/d1/other", {"value": 2.5})
    query = f"SELECT time, site, device, value FROM {table}"
    assert server.sql(query) == [[TIME, "s1", "d1", 1.5]]
    tags = server.sql(
        f"""SELECT "column" FROM system.columns WHERE "table" = 'public.{table}' AND role = 'tag' ORDER BY 1"""
    )
    assert tags == [["device"], ["site"]]


def test_the_five_level_scheme_in_one_line(server, device):
    table = source(server, "{org}/{site}/{device_type}/{device_id}/{measurement}", name="zz_five_levels")
    device.publish("acme/hall-2/press/p1/pressure", {"bar": 6.2, "ts": TIME_S})
    server.sql("DROP SOURCE zz_five_levels")
    query = f"SELECT org, site, device_type, device_id, measurement, bar FROM {table}"
    assert server.sql(query) == [["acme", "hall-2", "press", "p1", "pressure", 6.2]]


@pytest.mark.parametrize(
    "declared, sent",
    [
        ("time = 'at', unit = 's'", TIME_S),
        ("time = 'at', unit = 'ms'", TIME_S * 10**3),
        ("time = 'at', unit = 'us'", TIME_S * 10**6),
        ("time = 'at', unit = 'ns'", TIME_S * 10**9),
        ("time = 'at'", TIME_S),
        ("time = 'at'", TIME_S * 10**3),
        ("time = 'at'", TIME_S * 10**6),
        ("time = 'at'", TIME_S * 10**9),
        ("time = 'at'", "2024-02-23T15:53:20+01:00"),
        ("time = 'at', unit = 'ms'", TIME),
    ],
)
def test_the_key_and_the_unit_of_the_time(server, device, declared, sent):
    root = unique("timed")
    table = source(server, f"{root}/x", f"JSON ({declared})")
    device.publish(f"{root}/x", {"at": sent, "ts": 1, "value": 1.5})
    # What is not the time is a field, whatever it is called.
    assert server.sql(f"SELECT time, ts, value FROM {table}") == [[TIME, 1.0, 1.5]]


def test_a_declared_unit_is_not_guessed_away(server, device):
    root = unique("timed")
    table = source(server, f"{root}/x", "JSON (time = 'ts', unit = 'ms')")
    device.publish(f"{root}/x", {"ts": TIME_S, "value": 1})
    assert "outside the accepted range" in reason(server, f"{root}/x")
    assert is_unknown(server, table) or server.sql(f"SELECT * FROM {table}") == []


def test_listed_tags(server, device):
    root = unique("tagged")
    table = source(server, f"{root}/x", "JSON (tags = 'line, sensor')")
    for line in (1, 2):
        device.publish(f"{root}/x", {"line": line, "sensor": "a", "device": "d", "value": line, "ts": TIME_S})
    assert server.sql(f"SELECT line, sensor, device, value FROM {table} ORDER BY line") == [
        ["1", "a", "d", 1.0],
        ["2", "a", "d", 2.0],
    ]
    role = f"""SELECT role FROM system.columns WHERE "table" = 'public.{table}' AND "column" = 'device'"""
    assert server.sql(role) == [["field"]]


@pytest.mark.parametrize("protocol", [V311, V5], ids=["3.1.1", "5.0"])
@pytest.mark.parametrize("options, code", [("", 0), ("WITH (reject_invalid = true)", PAYLOAD_INVALID)])
def test_reject_invalid(server, protocol, options, code):
    root = unique("strict")
    table = source(server, f"{root}/x", options=options)
    with Device(server.address("mqtt"), protocol=protocol) as device:
        assert device.publish(f"{root}/x", {"value": 1, "ts": TIME_S}) == 0
        assert device.publish(f"{root}/x", '{"value":', qos=1) == (code if protocol == V5 else 0)
        assert device.publish(f"{root}/x", {"value": "warm"}) == (code if protocol == V5 else 0)
        assert device.publish(f"{root}/x", {"value": 2, "ts": TIME_S + 1}) == 0
    assert server.sql(f"SELECT value FROM {table} ORDER BY time") == [[1.0], [2.0]]
    assert len(letters(server, f"{root}/x")) == 2


def test_the_first_source_by_name_takes_the_message(server, device):
    root = unique("both")
    server.sql(f"CREATE SOURCE {root}b ON MQTT '{root}/#' FORMAT JSON INTO {root}b")
    server.sql(f"CREATE SOURCE {root}a ON MQTT '{root}/x' FORMAT JSON INTO {root}a")
    for topic in ("x", "y"):
        device.publish(f"{root}/{topic}", {"value": 1})
    assert server.sql(f"SELECT count(*) FROM {root}a") == server.sql(f"SELECT count(*) FROM {root}b") == [[1]]
    assert is_unknown(server, root)
    topics = server.sql(f"SELECT topic, source FROM system.topics WHERE topic LIKE '{root}/%' ORDER BY 1")
    assert topics == [[f"{root}/x", f"{root}a"], [f"{root}/y", f"{root}b"]]


def test_sources_are_replaced_and_dropped_while_messages_come(server, device):
    root = unique("moving")
    first, second = (source(server, f"{root}/x", name=root), unique("second"))
    device.publish(f"{root}/x", {"value": 1})
    assert server.post_sql(f"CREATE SOURCE {root} ON MQTT '{root}/x' FORMAT JSON INTO {second}").status == 400
    server.sql(f"CREATE OR REPLACE SOURCE {root} ON MQTT '{root}/x' FORMAT JSON INTO {second}")
    device.publish(f"{root}/x", {"value": 2})
    server.sql(f"DROP SOURCE {root}")
    device.publish(f"{root}/x", {"value": 3})
    assert [server.sql(f"SELECT value FROM {table}") for table in (first, second, root)] == [[[1]], [[2]], [[3]]]


def test_a_table_with_fixed_columns_takes_no_other_key(server, device):
    table = unique("fixed")
    server.sql(
        f"CREATE TABLE {table} (time TIMESTAMP, device STRING TAG, n BIGINT, on BOOLEAN)".replace("on ", '"on" ')
    )
    source(server, f"{table}/x", table=table)
    device.publish(f"{table}/x", {"device": "d1", "n": 3.0, "on": True, "ts": TIME_S})
    for sent, about in [
        ({"n": 1, "humidity": 2}, "humidity"),
        ({"n": 3.5}, "n is BIGINT"),
        ({"on": 1}, "on is BOOLEAN"),
    ]:
        device.publish(f"{table}/x", sent)
        assert about in letters(server, f"{table}/x")[-1][2]
    assert server.sql(f'SELECT time, device, n, "on" FROM {table}') == [[TIME, "d1", 3, True]]


# The default mapping


@pytest.mark.parametrize(
    "payload, columns, row",
    [
        ({"device": "d1", "value": 23.5, "ts": TIME_S}, "time, device, value", [TIME, "d1", 23.5]),
        ({"device_id": 7, "sensor_id": True, "a": 1}, "device_id, sensor_id, a", ["7", "true", 1.0]),
        ('{"a":{"b":1,"c":{"d":"x"}},"e":[1,{"f":2}]}', "a_b, a_c_d, e", [1.0, "x", '[1,{"f":2}]']),
        ({"on": True, "text": 'grüße\n"x"', "n": -0.5}, '"on", text, n', [True, 'grüße\n"x"', -0.5]),
        ({"a": 9007199254740993, "b": 18446744073709551615}, "a, b", [9007199254740993, 18446744073709551615]),
        ({"timestamp": TIME, "a": 1}, "time, a", [TIME, 1.0]),
        ("23.5", "value", [23.5]),
        ("-7", "value", [-7.0]),
        ("true", "state", [True]),
        ('"open"', "text", ["open"]),
        ("open", "text", ["open"]),
        ("x" * 1024, "text", ["x" * 1024]),
    ],
)
def test_the_default_mapping(server, device, payload, columns, row):
    table = unique("plain")
    assert device.publish(f"{table}/a/b", payload) == 0
    assert server.sql(f"SELECT topic, {columns} FROM {table}") == [[f"{table}/a/b", *row]]


def test_an_array_of_objects_is_several_rows(server, device):
    table = unique("many")
    device.publish(f"{table}/x", [{"n": n, "ts": TIME_S + n} for n in range(3)])
    assert server.sql(f"SELECT n FROM {table} ORDER BY time") == [[0], [1], [2]]
    device.publish(f"{table}/x", [{"n": 3, "ts": TIME_S + 3}, {"n": "three", "ts": TIME_S + 4}])
    assert server.sql(f"SELECT count(*) FROM {table}") == [[3]]  # all rows of a message, or none
    assert "n is DOUBLE" in reason(server, f"{table}/x")


def test_rows_of_one_time_are_one_point_and_null_is_absent(server, device):
    table = unique("point")
    device.publish(f"{table}/x", {"device": "d1", "a": 1, "b": 1, "ts": TIME_S})
    device.publish(f"{table}/x", {"device": "d1", "a": None, "b": 2, "c": 3, "ts": TIME_S * 1000})
    assert server.sql(f"SELECT a, b, c FROM {table}") == [[1.0, 2.0, 3.0]]
    device.publish(f"{table}/x", [{"device": "d1", "a": 4, "ts": TIME_S}, {"device": "d1", "a": 5, "ts": TIME_S}])
    device.publish(f"{table}/x", {"device": "d2", "a": 6, "ts": TIME_S})
    device.publish(f"{table}/y", {"device": "d1", "a": 7, "ts": TIME_S})
    rows = server.sql(f"SELECT topic, device, a, b FROM {table} ORDER BY a")
    assert [row[1:] for row in rows] == [["d1", 5, 2], ["d2", 6, None], ["d1", 7, None]]


def test_arrival_is_the_time_of_what_has_none(server, device):
    table = unique("arrival")
    for n in range(5):
        device.publish(f"{table}/x", str(n))
    assert server.sql(f"SELECT value FROM {table} ORDER BY time") == [[n] for n in range(5)]
    ((last,),) = server.sql(f"SELECT max(time) FROM {table}")
    assert abs(datetime.now(UTC) - datetime.fromisoformat(last)) < timedelta(hours=1)


@pytest.mark.parametrize("key", ["topic", "Topic", "TOPIC", "device"])
def test_no_key_of_the_payload_forges_the_topic(server, device, key):
    table = unique("forged")
    device.publish(f"{table}/first", {"value": 0, "ts": TIME_S})
    for value in ("other/x", None, 7):
        device.publish(f"{table}/x", {key: value, "value": 1, "ts": TIME_S + 1})
    assert server.sql(f"SELECT DISTINCT topic FROM {table} ORDER BY 1") == [[f"{table}/first"], [f"{table}/x"]]
    by_topic = server.sql(f"SELECT count(*) > 0 FROM {table} WHERE topic = 'other/x'")
    assert by_topic == [[False]]


def test_keys_that_differ_in_case_stay_apart(server, device):
    table = unique("cased")
    for n, sent in enumerate([{"Temp": 1}, {"temp": "two"}, {"TEMP": True}, {"temp": "4", "TEMP": False, "Temp": 5}]):
        assert device.publish(f"{table}/x", sent | {"ts": TIME_S + n}) == 0
    assert letters(server, f"{table}/x") == []
    rows = server.sql(f'SELECT "Temp", "temp", "TEMP" FROM {table} ORDER BY time')
    assert rows == [[1.0, None, None], [None, "two", None], [None, None, True], [5.0, "4", False]]


def test_topics_that_differ_in_case_are_tables_of_their_own(server, device):
    table = unique("cased")
    for topic, value in ((table, 1), (table.capitalize(), 2), (table.upper(), 3)):
        device.publish(f"{topic}/x", str(value))
    found = [server.sql(f'SELECT value FROM "{name}"') for name in (table, table.capitalize(), table.upper())]
    assert found == [[[1.0]], [[2.0]], [[3.0]]]


# Dead letters


@pytest.mark.parametrize(
    "payload, about",
    [
        ('{"value":', "not JSON"),
        ("[1, 2]", "not JSON"),
        ('{"value":1} x', "not JSON"),
        ("x" * 1025, "not JSON"),
        ({"device": "d1", "ts": TIME_S}, "no field"),
        ("{}", "no field"),
        ({"value": 1, "ts": 1}, "outside the accepted range"),
        ({"value": 1, "ts": "1999-12-31T23:59:59Z"}, "outside the accepted range"),
        ({"value": 1, "ts": 4_000_000_000}, "outside the accepted range"),
        ({"value": 1, "ts": "yesterday"}, "yesterday"),
        ({"value": 1, "ts": 1e300}, "time"),
        ('{"a":' * 40 + "1" + "}" * 40, "32"),
        ({"k" * 300: 1}, "255"),
        ({f"k{n}": n for n in range(600)}, "512"),
    ],
)
def test_why_a_message_is_a_dead_letter(server, device, payload, about):
    table = unique("dead")
    assert device.publish(f"{table}/x", payload) == 0
    assert about in reason(server, f"{table}/x")
    assert is_unknown(server, table) or server.sql(f"SELECT * FROM {table}") == []
    device.publish(f"{table}/x", {"value": 1, "ts": TIME_S})
    assert server.sql(f"SELECT value FROM {table}") == [[1.0]]


def test_a_dead_letter_says_who_sent_what_where_and_why(server):
    table = source(server, "raw/+")
    with Device(server.address("mqtt"), name="sender") as device:
        device.publish("raw/text", 'it\'s "text"')
        device.publish("raw/bytes", b"\xff\x00\x01")
        device.publish("raw/large", "y" * 300_000)
    answer = server.post_sql("SELECT * FROM system.dead_letters WHERE topic LIKE 'raw/%' ORDER BY time").json
    assert [column["name"] for column in answer["columns"]] == [
        "time",
        "topic",
        "client",
        "payload",
        "encoding",
        "reason",
    ]
    rows = [row[1:5] for row in answer["rows"]]
    assert rows[:2] == [["raw/text", "sender", 'it\'s "text"', "utf8"], ["raw/bytes", "sender", "ff0001", "hex"]]
    assert rows[2] == ["raw/large", "sender", "y" * (256 << 10), "utf8"]
    assert all("not JSON" in row[5] for row in answer["rows"])
    assert abs(datetime.now(UTC) - datetime.fromisoformat(answer["rows"][0][0])) < timedelta(hours=1)
    assert is_unknown(server, table)


def test_dead_letters_survive_kill9(make_server):
    server = make_server()
    with Device(server.address("mqtt")) as device:
        device.publish("a/x", "{")
    server.kill9()
    server.restart()
    assert "not JSON" in reason(server, "a/x")


def test_huge_keys_do_not_freeze_the_server(server):
    """One key of 60 KB around 4,000 children would be 240 MB of names."""
    topic = f"{unique('huge')}/x"
    digits = "0123456789abcdefghijklmnopqrst"
    children = [a + b + c for a in digits for b in digits for c in digits][:4000]
    payload = json.dumps({"k" * 60_000: dict.fromkeys(children, 1)}, separators=(",", ":"))
    assert len(payload) <= 96 << 10
    with Client(server) as sender, Client(server) as neighbour:
        sender.paho.publish(topic, payload, qos=1)
        neighbour.publish(f"{unique('quiet')}/x", "1")
        wait_until(lambda: letters(server, topic), "the dead letter of a message with huge keys", 2)
    assert "255" in reason(server, topic)


# The limits of the source `default`


def lifting_statement(text):
    """The CREATE SOURCE statement that a reason names."""
    (statement,) = re.findall(r"CREATE SOURCE .* INTO \S+", text)
    return statement.removesuffix(";")


@pytest.mark.parametrize("limit", ["tables", "columns", "series"])
def test_the_limits_of_default_name_the_statement_that_lifts_them(make_server, limit):
    server = make_server()
    if limit == "tables":
        server.write(None, "".join(f"t{n} v=1\n" for n in range(255)))
        messages = [("ok-1/x", {"v": 1}), ("over-1/x", {"v": 1})]
    elif limit == "columns":
        messages = [("wide/x", {f"k{n}": n for n in range(400)}), ("wide/x", {f"m{n}": n for n in range(400)})]
    else:
        rows = [{"device": f"d{n}", "v": 1, "ts": TIME_S} for n in range(100_000)]
        messages = [("ids/x", rows[start : start + 20_000]) for start in range(0, 100_000, 20_000)]
        messages.append(("ids/x", {"device": "one more", "v": 1}))
    with Device(server.address("mqtt")) as device:
        for topic, payload in messages:
            assert device.publish(topic, payload) == 0
        topic, refused = messages[-1]
        why = reason(server, topic)
        assert {"tables": "256", "columns": "512", "series": "100000"}[limit] in why.replace(",", ""), why
        assert server.sql(f"SELECT rejected FROM system.topics WHERE topic = '{topic}'") == [[1]]
        server.sql(lifting_statement(why))
        assert device.publish(topic, refused) == 0
    assert len(letters(server, topic)) == 1
    stored = {"tables": 'SELECT count(*) FROM "over-1"', "columns": "SELECT count(m1) FROM wide"}
    assert server.sql(stored.get(limit, "SELECT count(*) FROM ids WHERE device = 'one more'")) == [[1]]


def test_default_can_be_dropped_for_good_and_brought_back(make_server):
    server = make_server()
    ((statement,),) = server.sql("SELECT statement FROM system.sources WHERE name = 'default'")
    server.sql('DROP SOURCE "default"')
    for _ in range(2):
        with Device(server.address("mqtt")) as device:
            assert device.publish("a/x", "1") == 0
        assert is_unknown(server, "a")
        assert server.sql("SELECT source FROM system.topics WHERE topic = 'a/x'") == [[None]]
        server.restart()
    server.sql(statement)
    with Device(server.address("mqtt")) as device:
        device.publish("a/x", "2")
    assert server.sql("SELECT value FROM a") == [[2.0]]


# Delivered, and not stored


PASSED_OVER = {
    "empty payload": ("", {}),
    "not UTF-8": (b"\xff\xfe1", {}),
    "a response is asked for": ("1", {"ResponseTopic": "answers/x"}),
    "correlation data": ("1", {"CorrelationData": b"7"}),
    "a bare null": ("null", {}),
}


@pytest.mark.parametrize("payload, properties", PASSED_OVER.values(), ids=PASSED_OVER.keys())
def test_what_default_passes_over_is_delivered_and_not_stored(server, device, payload, properties):
    table = unique("passed")
    with Client(server) as receiver:
        receiver.subscribe(f"{table}/x")
        assert device.publish(f"{table}/x", payload, **properties) == 0
        assert receiver.next().payload == (payload if isinstance(payload, bytes) else payload.encode())
    assert is_unknown(server, table)
    assert letters(server, f"{table}/x") == []
    row = server.sql(
        f"SELECT source, messages, rows, rejected, last_error FROM system.topics WHERE topic = '{table}/x'"
    )
    assert row == [["default", 1, 0, 0, None]]


def test_a_source_of_ones_own_takes_what_asks_for_a_response(server, device):
    root = unique("asked")
    table = source(server, f"{root}/x")
    device.publish(f"{root}/x", {"value": 1}, ResponseTopic="answers/x", CorrelationData=b"7")
    assert server.sql(f"SELECT value FROM {table}") == [[1.0]]


@pytest.mark.parametrize("topic", ["/{}/x", "$any/{}", "/"])
def test_topics_that_begin_with_a_dollar_or_a_slash_are_not_stored(server, topic):
    topic = topic.format(unique("odd"))
    tables = server.sql("SELECT name FROM system.tables ORDER BY 1")
    with Device(server.address("mqtt"), server.token) as admin:
        admin.subscribe(topic)
        assert admin.publish(topic, "1") == 0
        assert admin.messages.get(timeout=20).topic == topic
    assert server.sql("SELECT name FROM system.tables ORDER BY 1") == tables
    assert letters(server, topic) == []
    sources = server.sql(f"SELECT source, rows, rejected FROM system.topics WHERE topic = '{topic}'")
    assert sources in ([], [[None, 0, 0]])


# system.topics


def test_system_topics_answers_i_published_and_see_nothing(server, device):
    table = unique("counted")
    columns = "source, messages, rows, rejected, last_error"

    def of(topic):
        return server.sql(f"SELECT {columns} FROM system.topics WHERE topic = '{topic}'")

    assert of(f"{table}/x") == []
    device.publish(f"{table}/x", {"v": 1, "ts": TIME_S})
    device.publish(f"{table}/x", [{"v": n, "ts": TIME_S + n} for n in range(3)])
    assert of(f"{table}/x") == [["default", 2, 4, 0, None]]
    device.publish(f"{table}/x", {"v": "warm"})
    ((_, *numbers, error),) = of(f"{table}/x")
    assert numbers == [3, 4, 1] and "v is DOUBLE" in error and "warm" in error
    assert server.sql(f"SELECT topic FROM system.topics WHERE topic LIKE '{table}/%'") == [[f"{table}/x"]]
    assert [f"{table}/x", "default"] in [row[:2] for row in server.sql("SHOW topics")]
