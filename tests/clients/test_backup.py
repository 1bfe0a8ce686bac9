"""The restore drill: backups of a server that is written to, restored, and compared row by row; and docs/backup.md."""

import json
import re
import shlex
import shutil
import threading
import time
from datetime import UTC, datetime

import pytest
from documents import blocks
from support import TIME_S, Server, run, tool


@pytest.fixture
def backed_up(make_server, tmp_path):
    """A server that may back up to a directory, and that directory."""
    return make_server(f"backup.locations={tmp_path}/backups", "storage.memtable=256KiB"), tmp_path / "backups"


def restore(server, destination, directory, *how, code=0):
    """Runs `sonde restore`; what it says."""
    arguments = ("restore", str(destination), "--data-dir", str(directory / "data"), *how)
    return run(server.binary, *arguments, env=server.environment(), code=code)


class Restored:
    """A server on a restored directory, for as long as it takes to look at it."""

    def __init__(self, server, directory):
        self.server = Server(server.binary, directory)

    def __enter__(self):
        return self.server.start()

    def __exit__(self, *_):
        if self.server.running:
            self.server.stop()
        shutil.rmtree(self.server.data_dir)


def rows(server, table="drill"):
    return server.sql(f"SELECT time, device, n FROM {table} ORDER BY n")


def listed(server, destination):
    return json.loads(run(server.binary, "backup", "list", str(destination), "--json"))


class Writers:
    """Threads that write rows by HTTP and by MQTT, each numbered, until they are told to end."""

    def __init__(self, server):
        self.server, self.stop, self.acknowledged = server, threading.Event(), []
        self.threads = [threading.Thread(target=self.http), threading.Thread(target=self.mqtt)]

    def http(self):
        n = 0
        while not self.stop.is_set():
            lines = "".join(f"drill,device=http n={n + i}i {(TIME_S + n + i) * 10**9}\n" for i in range(100))
            self.server.write("drill", lines)
            n += 100
            self.acknowledged.append(n)

    def mqtt(self):
        host, port = self.server.address("mqtt")
        n = 1_000_000
        while not self.stop.is_set():
            payload = json.dumps({"device": "mqtt", "n": n, "ts": TIME_S + n})
            command = (tool("mosquitto_pub"), "-h", host, "-p", str(port), "-q", "1", "-t", "drill2/x", "-m", payload)
            run(*command)
            n += 1

    def __enter__(self):
        for thread in self.threads:
            thread.start()
        return self

    def __exit__(self, *_):
        self.stop.set()
        for thread in self.threads:
            thread.join()


def test_the_restore_drill(backed_up, tmp_path):
    server, destination = backed_up
    server.write("drill", f"drill,device=http n=0i {TIME_S * 10**9}\n")
    known, said = [], []
    with Writers(server) as writers:
        for step in range(4):
            before = writers.acknowledged[-1] if writers.acknowledged else 0
            said.append(server.cli("backup", str(destination)))
            known.append(before)
            if step == 1:
                server.sql("FLUSH TABLE drill")
            if step == 2:
                server.sql("COMPACT TABLE drill")
    assert all(re.match(r"backup \d{8}T\d{6}Z-[0-9a-f]{8} up to seq \d+: \d+ objects", line) for line in said), said
    expected = rows(server)
    listing = listed(server, destination)
    backups = listing["backups"]
    assert [backup["since"] for backup in backups] == [None] + [backup["id"] for backup in backups[:-1]]
    assert len(listing["restorable"]) == 1
    assert "4 backups" in run(server.binary, "backup", "verify", str(destination))
    # The server is gone, with its directory.
    server.kill9()
    shutil.move(server.data_dir, tmp_path / "lost")
    for backup, before in zip(backups, known, strict=True):
        restore(server, destination, tmp_path / "r", "--backup", backup["id"])
        with Restored(server, tmp_path / "r") as copy:
            found = rows(copy)
            # All that was acknowledged before it began, whole batches of what came later, nothing else.
            assert len(found) >= before
            assert found == expected[: len(found)]
            assert len(found) % 100 == 0 or len(found) == 1
            mqtt = (
                [n for _, _, n in rows(copy, "drill2")] if copy.post_sql("SELECT 1 FROM drill2").status == 200 else []
            )
            assert mqtt == [1_000_000 + i for i in range(len(mqtt))]
    # And it is a server like any other: tokens of before are known, it takes rows, and can be backed up.
    restore(server, destination, tmp_path / "r")
    with Restored(server, tmp_path / "r") as copy:
        copy.write("drill", f"drill,device=again n=-1i {TIME_S * 10**9}\n")
        assert rows(copy)[0][2] == -1
        copy.stop()
        again = run(
            server.binary, "backup", str(destination), "--data-dir", str(copy.data_dir), env=server.environment()
        )
        assert f"every instant since {backups[-2]['id']}" in again, again


def stamp():
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")


def write_for_more_than_a_second(server):
    """The log states the clock once a second, and only with a commit: what follows is told apart from what was."""
    deadline = time.monotonic() + 1.1
    while time.monotonic() < deadline:
        server.write("other", f"other,device=d n=0i {TIME_S * 10**9}\n")


def test_to_an_instant_between_two_backups(backed_up, tmp_path):
    server, destination = backed_up
    moments = []
    server.write("drill", f"drill,device=d n=0i {TIME_S * 10**9}\n")
    server.cli("backup", str(destination))
    for n in range(1, 5):
        server.write("drill", f"drill,device=d n={n}i {(TIME_S + n) * 10**9}\n")
        moments.append(stamp())
        write_for_more_than_a_second(server)
        if n == 2:
            server.sql("COMPACT TABLE drill")
    server.sql("DROP TABLE drill")
    server.cli("backup", str(destination))
    for n, moment in enumerate(moments, start=1):
        said = restore(server, destination, tmp_path / "r", "--to", moment)
        assert said.startswith("restored backup "), said
        with Restored(server, tmp_path / "r") as copy:
            assert [row[2] for row in rows(copy)] == list(range(n + 1))
    restore(server, destination, tmp_path / "r")
    with Restored(server, tmp_path / "r") as copy:
        assert copy.post_sql("SELECT * FROM drill").status == 400
    first = listed(server, destination)["backups"][0]
    restore(server, destination, tmp_path / "r", "--to-seq", str(first["seq"]))
    with Restored(server, tmp_path / "r") as copy:
        assert [row[2] for row in rows(copy)] == [0]


def test_what_fails_and_how(backed_up, tmp_path):
    server, destination = backed_up
    said = server.cli("backup", str(tmp_path / "elsewhere"), code=77)
    assert "backup.locations" in said and not (tmp_path / "elsewhere").exists()
    assert "backup.locations" in server.post_sql(f"BACKUP TO '{destination}/../x'").error
    reader = server.create_token("--query")
    assert server.http("POST", "/api/v1/sql", f"BACKUP TO '{destination}'", token=f"Bearer {reader}").status == 403
    assert "no backup is running" in server.post_sql("KILL BACKUP").error
    assert not destination.exists()
    server.write("drill", f"drill,device=d n=0i {TIME_S * 10**9}\n")
    server.sql("FLUSH TABLE drill")
    server.cli("backup", str(destination))
    here = (server.binary, "backup")
    assert "s3" in run(*here, "s3://bucket/x", code=2)
    assert run(*here, "list", str(tmp_path / "nowhere"), code=74)
    assert "nowhere" in restore(server, tmp_path / "nowhere", tmp_path / "r", code=74)
    assert "is not empty" in restore(server, destination, server.directory, code=1)
    assert "cannot be restored" in restore(server, destination, tmp_path / "r", "--to", "2020-01-01T00:00:00Z", code=1)
    assert "expected a time" in restore(server, destination, tmp_path / "r", "--to", "yesterday", code=2)
    # Damage is found by name, and nothing is restored.
    (chunk,) = (path for path in destination.rglob("*.chunk") if path.stat().st_size > 0)
    good = chunk.read_bytes()
    chunk.write_bytes(good[:100] + bytes([good[100] ^ 1]) + good[101:])
    name = str(chunk.relative_to(destination))
    found = json.loads(
        run("sh", "-c", shlex.join([*here, "verify", str(destination), "--json"]) + "; test $? = 65 || exit 1")
    )
    assert len(found["damage"]) == 1 and name in found["damage"][0]
    assert name in restore(server, destination, tmp_path / "r", code=65)
    assert not (tmp_path / "r" / "data").exists()
    # A chunk of the server that is damaged is not backed up.
    chunk.write_bytes(good)
    server.write("drill", f"drill,device=e n=0i {TIME_S * 10**9}\n")
    server.sql("FLUSH TABLE drill")
    newest = max((server.data_dir / "chunks").iterdir())
    bad = newest.read_bytes()
    newest.write_bytes(bytes([bad[0] ^ 1]) + bad[1:])
    assert newest.name in server.cli("backup", str(destination), code=74)
    newest.write_bytes(bad)
    server.cli("backup", str(destination))
    assert len(listed(server, destination)["backups"]) == 2
    server.stop()
    assert run(*here, str(destination), "--url", "http://127.0.0.1:1", "--token", "x", code=69)


def test_the_commands_of_the_document(backed_up, tmp_path):
    """docs/backup.md from its first command to its last, with the paths and the time of this test."""
    server, destination = backed_up
    commands = [line for _, text in blocks("backup.md", "sh") for line in text.splitlines()]
    assert len(commands) >= 9
    server.write("drill", f"drill,device=d n=0i {TIME_S * 10**9}\n")
    server.cli("backup", str(destination))
    write_for_more_than_a_second(server)
    moment = stamp()
    expected = rows(server)
    (tmp_path / "var").mkdir()
    there = {"/backup/sonde": str(destination), "/var/lib/": f"{tmp_path}/var/", "2026-11-20T10:00:00Z": moment}
    for command in commands:
        words = shlex.split(command)
        for old, new in there.items():
            words = [word.replace(old, new) for word in words]
        if words[0] == "sonde":
            words[0] = server.binary
        if words[1:] == ["backup", str(destination)]:
            server.cli(*words[1:])
            continue
        if words[1] == "restore" and server.running:
            # Step 1.
            server.stop()
            shutil.move(server.data_dir, tmp_path / "var" / "sonde")
        run(*words, env=server.environment())
    for name in ("sonde", "sonde-before", "sonde-broken"):
        directory = tmp_path / name
        directory.mkdir()
        shutil.move(tmp_path / "var" / name, directory / "data")
        with Restored(server, directory) as copy:
            assert rows(copy) == expected
