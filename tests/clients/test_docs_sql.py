"""Every statement of the documents runs, and the types that docs/sql.md lists are the types that there are."""

import re

import pytest
from documents import DOCS, DOCUMENTS, blocks, inline, statements
from support import servers, unique

# What cannot succeed as it stands, and what is answered instead.
EXCEPTIONS = {"KILL QUERY 17": "no query 17 is running", "KILL BACKUP": "no backup is running"}

VERBS = "SELECT|SHOW|CREATE|ALTER|DROP|GRANT|DENY|REVOKE|INSERT|COPY|DELETE FROM|UPDATE|EXPLAIN|FLUSH"
# What stands for dots in a sentence.
DOTS = {
    "CREATE TABLE ...": "CREATE TABLE {} (time TIMESTAMP, x DOUBLE)",
    "CREATE SOURCE ...": "CREATE SOURCE {} ON MQTT '{}/#' FORMAT JSON INTO {}",
    "CREATE USER ...": "CREATE USER {}",
    "'...'": "'some words'",
}
OTHERS = "SELECT payload.temperature"  # a statement of EMQX

READINGS = """(
    time TIMESTAMP, site STRING TAG, device STRING TAG, temperature DOUBLE, starts BIGINT UNSIGNED, door BOOLEAN
)"""


BLOCKS = [(document, line, statements(text)) for document in DOCUMENTS for line, text in blocks(document, "sql")]


@pytest.fixture(scope="module")
def documented(binary, tmp_path_factory):
    """A server that may COPY and BACKUP, and has had the message of the first hour."""
    exports = tmp_path_factory.mktemp("exports")
    with servers(binary, tmp_path_factory) as make:
        server = make(f"copy.locations={exports}", f"backup.locations={exports}/backups")
        server.cli("pub", "sensors/temp", '{"device":"d1","value":23.5,"ts":1708700000}')
        yield server, exports


@pytest.mark.parametrize("document, line, block", BLOCKS, ids=[f"{it[0]}:{it[1]}" for it in BLOCKS])
def test_the_statements_of_a_block_run(documented, document, line, block):
    server, exports = documented
    server.sql("CREATE TABLE IF NOT EXISTS plant (time TIMESTAMP, device STRING TAG, temperature DOUBLE)")
    for table in ("readings", "old_readings"):
        server.sql(f"CREATE TABLE IF NOT EXISTS {table} {READINGS}")
        server.sql(
            f"INSERT INTO {table} (time, site, device, temperature) VALUES ('2026-10-01T00:00:00Z', 's1', 'd1', 20)"
        )
    for statement in block:
        statement_here = statement.replace("/var/lib/sonde-export", str(exports))
        answer = server.post_sql(statement_here.replace("/backup/sonde", f"{exports}/backups"))
        refusal = EXCEPTIONS.get(statement)
        if refusal:
            assert answer.status == 400 and refusal in answer.error, f"{statement}: {answer}"
        else:
            assert answer.status == 200, f"{statement}: {answer}"


def test_all_blocks_and_all_exceptions_were_found():
    texts = [text for _, _, block in BLOCKS for text in block]
    assert len(texts) > 25
    assert set(EXCEPTIONS) <= set(texts)
    assert sum((DOCS / document).read_text().count("```sql") for document in DOCUMENTS) == len(BLOCKS)


def sentences():
    """(document, statement) of what stands in the text of the documents and is whole, where dots are filled in.

    Not of docs/sql.md, which names parts of statements in its text and has the whole ones in blocks, and not of those that
    tell how something was measured."""
    for document in DOCUMENTS:
        for text in inline(document, VERBS) if document not in ("sql.md", "benchmarks.md") else ():
            for dots, words in DOTS.items():
                text = text.replace(dots, words.replace("{}", unique("filled")))
            is_part = text.startswith(("GRANT", "DENY")) and " TO " not in text
            is_part = is_part or "..." in text or len(text.split()) < 3 or text == "CREATE OR REPLACE"
            if not is_part and not text.startswith(OTHERS):
                yield document, text


@pytest.mark.parametrize("document, statement", list(sentences()))
def test_the_statements_of_a_sentence_run(documented, document, statement):
    server, _ = documented
    created = re.match(r"CREATE USER (\w+)", statement)
    for name in ("name", "a"):
        server.sql(f"CREATE USER IF NOT EXISTS {name}")
    server.sql("CREATE ROLE IF NOT EXISTS role")
    if created:
        server.sql(f"DROP USER IF EXISTS {created[1]}")
    answer = server.post_sql(statement)
    assert answer.status == 200, f"{statement}: {answer}"


def types():
    """(name, its main name) of each row of the table of types, but the time's."""
    rows = re.findall(r"^\| `([A-Z ]+)` \| (.*?) \| ", (DOCS / "sql.md").read_text(), re.MULTILINE)
    for main, others in rows:
        if main != "TIMESTAMP":
            yield from ((name, main) for name in [main, *re.findall(r"`([^`]+)`", others)])


@pytest.mark.parametrize("name, main", list(types()))
def test_a_column_has_each_type_by_each_of_its_names(documented, name, main):
    server, _ = documented
    table = "typed_" + name.replace(" ", "_").lower()
    server.sql(f"CREATE TABLE {table} (time TIMESTAMP, x {name})")
    found = server.sql(f"""SELECT type FROM system.columns WHERE "table" = 'public.{table}' AND "column" = 'x'""")
    assert found == [[main]]


SYSTEM = ["tables", "columns", "sources", "rules", "topics", "dead_letters", "sessions", "queries", "chunks", "tiers"]
SYSTEM += ["wal", "jobs", "settings", "users", "roles", "grants"]


@pytest.mark.parametrize("table", SYSTEM)
def test_system_tables_have_the_columns_that_are_documented(documented, table):
    server, _ = documented
    (row,) = re.findall(rf"^\| `system\.{table}` \| (.*?) \|$", (DOCS / "sql.md").read_text(), re.MULTILINE)
    expected = [word.strip(" ") for word in re.sub(r"\(.*?\)|;.*", "", row).split(",")]
    answer = server.post_sql(f"SELECT * FROM system.{table}")
    assert answer.status == 200, answer
    assert [column["name"] for column in answer.json["columns"]] == expected
    if table != "columns":
        assert server.post_sql(f"SHOW {table}").status == 200


@pytest.mark.parametrize(
    "query, row",
    [
        ("SELECT time_bucket('15 minutes', '2026-11-20T12:34:56Z'::TIMESTAMP)", ["2026-11-20T12:30:00Z"]),
        ("SELECT time_bucket(INTERVAL '1 day', '2026-11-20T12:34:56Z'::TIMESTAMP)", ["2026-11-20T00:00:00Z"]),
        ("SELECT time_bucket('1 week', '2026-11-20T12:34:56Z'::TIMESTAMP)", ["2026-11-19T00:00:00Z"]),  # a Thursday
        (
            "SELECT time_bucket('1 week', '2026-11-20T12:34:56Z'::TIMESTAMP, '2024-01-01T00:00:00Z')",
            ["2026-11-16T00:00:00Z"],
        ),
        ("SELECT time_bucket('1 month', '2026-11-20T12:34:56Z'::TIMESTAMP)", ["2026-11-01T00:00:00Z"]),
        ("SELECT time_bucket('1 year', '2026-11-20T12:34:56Z'::TIMESTAMP)", ["2026-01-01T00:00:00Z"]),
        ("SELECT first(v, t), last(v, t) FROM (VALUES (1, 3), (2, 1), (NULL, 0), (4, 2)) x(v, t)", [2, 1]),
        ("SELECT now() > '2024-01-01T00:00:00Z', now() < '2200-01-01T00:00:00Z'", [True, True]),
        ("SELECT now() - INTERVAL '1 day' < now()", [True]),
        ("SELECT count(*) > 0 FROM sensors WHERE time < now() AND time < current_date", [True]),
        ("SELECT lag(v) OVER (ORDER BY v) FROM (VALUES (1), (2)) x(v) ORDER BY v DESC LIMIT 1", [1]),
        ("SELECT date_trunc('hour', time) FROM sensors", ["2024-02-23T14:00:00Z"]),
    ],
)
def test_functions(documented, query, row):
    server, _ = documented
    assert server.sql(query) == [row]
