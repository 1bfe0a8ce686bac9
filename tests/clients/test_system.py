"""System tables of storage and background work, and tables whose acknowledgements do not wait for the disk."""

import itertools

from support import unique


def lines(table, count=600):
    return "".join(
        f"{table},device=d{i % 3} v={i / 10},n={i}i {1_708_700_000_000_000_000 + i * 10**9}\n" for i in range(count)
    )


def named(server, query):
    """The rows of a statement as dictionaries."""
    answer = server.post_sql(query)
    assert answer.status == 200, answer
    names = [column["name"] for column in answer.json["columns"]]
    return [dict(zip(names, row, strict=True)) for row in answer.json["rows"]]


def test_jobs_say_what_ended(server):
    table = unique("jobs")
    for _ in range(2):
        server.write(table, lines(table))
        server.sql(f"FLUSH TABLE {table}")
    server.sql(f"COMPACT TABLE {table}")
    server.sql(f"COOL TABLE {table} BEFORE '2024-02-25T00:00:00Z'")
    jobs = named(server, "SHOW jobs")
    assert all(job["state"] in ("done", "running", "queued") and job["error"] is None for job in jobs), jobs
    of_table = {job["kind"]: job for job in jobs if job["table"] == f"public.{table}"}
    assert set(of_table) == {"compact", "cool"}, of_table
    merged, cooled = of_table["compact"], of_table["cool"]
    assert merged["rows"] == 1200 and cooled["rows"] == 600 and cooled["bytes"] > 0 and cooled["seconds"] > 0
    assert merged["range_start"] == "2024-02-23T00:00:00Z" and merged["range_end"] == "2024-02-24T00:00:00Z"
    flushes = [job for job in jobs if job["kind"] == "flush" and job["state"] == "done"]
    assert flushes and all(job["bytes"] > 0 for job in flushes if job["rows"]), flushes


def test_chunks_and_columns_say_how_dense_they_are(server):
    table = unique("dense")
    server.write(table, lines(table))
    columns = (
        f"""SELECT "column", "values", bytes, bytes_per_value FROM system.columns WHERE "table" = 'public.{table}'"""
    )
    assert all(column["bytes_per_value"] is None for column in named(server, columns)), "nothing is in a chunk yet"
    server.sql(f"FLUSH TABLE {table}")
    found = {column["column"]: column for column in named(server, columns)}
    assert found["v"]["values"] == 600 and 0 < found["v"]["bytes_per_value"] == found["v"]["bytes"] / 600 < 8
    assert found["device"]["bytes_per_value"] is None, "tags are in the directory of series"
    (chunk,) = named(server, f"""SELECT * FROM system.chunks WHERE "table" = 'public.{table}'""")
    assert (server.data_dir / chunk["path"]).stat().st_size == chunk["bytes"]
    assert chunk["values"] == 1800 and 0 < chunk["bits_per_value"] < 64
    assert chunk["range_start"] <= chunk["first"] <= chunk["last"] < chunk["range_end"]


def test_the_log_says_why_it_is_there(server):
    table = unique("log")
    server.write(table, lines(table))
    segments = named(server, "SELECT * FROM system.wal ORDER BY segment")
    assert [segment["state"] for segment in segments].count("active") == 1 and segments[-1]["state"] == "active"
    assert segments[-1]["last"] > segments[-1]["flushed_to"]
    assert all((server.data_dir / segment["path"]).stat().st_size == segment["bytes"] for segment in segments)
    assert all(before["last"] + 1 == after["first"] for before, after in itertools.pairwise(segments))


def test_a_buffered_table_survives_a_kill(make_server):
    server = make_server()
    server.sql(
        "CREATE TABLE fast (time TIMESTAMP, device STRING TAG, v DOUBLE, n BIGINT) WITH (durability = 'buffered')"
    )
    server.write("fast", lines("fast"))
    assert named(server, "SELECT durability FROM system.tables WHERE name = 'fast'") == [{"durability": "buffered"}]
    server.kill9()
    server.start()
    assert server.sql("SELECT count(*) FROM fast") == [[600]]
    server.sql("ALTER TABLE fast SET (durability = 'fsync')")
    assert named(server, "SELECT durability FROM system.tables WHERE name = 'fast'") == [{"durability": "fsync"}]
