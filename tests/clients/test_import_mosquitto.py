"""`sonde import mosquitto`: its users come in with the passwords they had, and may do what its ACL file says."""

import base64
import hashlib
import shutil
import subprocess

import pytest
from mqtt_wire import Wire, connected
from support import run, unique

PARTIAL = 3
BAD_PASSWORD, NOT_AUTHORIZED = 0x86, 0x87

ACL = """# rights
user pump
topic write plant/pump/#
topic read cmd/pump
topic deny plant/pump/secret

user viewer
topic read plant/#

pattern readwrite own/%u/%c
"""


def line(name, password, kind):
    """A line of a password file: PBKDF2-SHA512 as mosquitto_passwd 2 writes it, salted SHA-512 as 1.6 did."""
    salt = b"twelve bytes"
    text = lambda data: base64.b64encode(data).decode()  # noqa: E731
    if kind == 7:
        digest = hashlib.pbkdf2_hmac("sha512", password.encode(), salt, 101)
        return f"{name}:$7$101${text(salt)}${text(digest)}"
    return f"{name}:$6${text(salt)}${text(hashlib.sha512(password.encode() + salt).digest())}"


@pytest.fixture
def files(tmp_path):
    passwd, acl = tmp_path / "passwd", tmp_path / "acl"
    passwd.write_text(line("pump", "pump-word", 7) + "\n" + line("viewer", "view-word", 6) + "\n")
    acl.write_text(ACL)
    return ["--acl", str(acl), "--passwd", str(passwd)]


def connack(server, name, password):
    """The reason code of the CONNACK."""
    with Wire(server.address("mqtt")) as wire:
        return wire.connect(unique("client"), None, username=name, password=password).reason


def may_publish(wire, topic):
    """Whether the PUBACK says so."""
    reason = wire.publish(topic, "1", 1).reason
    assert reason in (0, NOT_AUTHORIZED), hex(reason)
    return reason == 0


@pytest.mark.parametrize("apply", [True, False], ids=["applied", "printed"])
def test_users_come_in_and_have_their_rights(make_server, files, tmp_path, apply):
    server = make_server()
    if apply:
        assert "statements were run" in server.cli("import", "mosquitto", *files, "--apply")
    else:
        sql = tmp_path / "users.sql"
        sql.write_text(run(server.binary, "import", "mosquitto", *files))
        server.cli("apply", str(sql))
    assert connack(server, "pump", "wrong-word") == BAD_PASSWORD
    with connected(server.address("mqtt"), client_id="c1", username="pump", password="pump-word") as wire:
        topics = ("plant/pump/x", "plant/pump/secret", "plant/viewer/x", "own/pump/c1", "own/pump/c2")
        assert [it for it in topics if may_publish(wire, it)] == ["plant/pump/x", "own/pump/c1"]
        assert wire.subscribe(("cmd/pump", 1), ("plant/#", 1)) == [1, NOT_AUTHORIZED]
    assert connack(server, "viewer", "view-word") == 0
    # The hashes of before are gone once their passwords were seen.
    assert server.sql("SELECT name, password FROM system.users ORDER BY 1") == [
        ["pump", "argon2id"],
        ["viewer", "argon2id"],
    ]
    assert connack(server, "viewer", "view-word") == 0 and connack(server, "viewer", "pump-word") == BAD_PASSWORD


def test_it_can_be_run_again(make_server, files):
    server = make_server()
    server.cli("import", "mosquitto", *files, "--apply")
    grants = server.sql("SHOW GRANTS")
    server.cli("import", "mosquitto", *files, "--apply")
    assert server.sql("SHOW GRANTS") == grants and len(grants) == 9


def test_what_cannot_be_translated_is_listed(binary, tmp_path):
    passwd, acl = tmp_path / "passwd", tmp_path / "acl"
    passwd.write_text("old:secret-in-clear\n")
    acl.write_text("topic read open/#\nuser old\ntopic read a/#/b\n")
    command = [binary, "import", "mosquitto", "--acl", str(acl), "--passwd", str(passwd)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == PARTIAL, done
    notes = [text for text in done.stdout.splitlines() if text.startswith("-- not translated: ")]
    assert [text.split(": ")[1].split(",")[0] for text in notes][:2] == ["ACL file"] * 2 and len(notes) == 3
    assert "user old has no password" in notes[2] and "secret-in-clear" not in done.stdout + done.stderr


@pytest.mark.parametrize(
    ("acl", "line"),
    [
        ("user alice\ntopic readwrite #\ntopic deny secret/${x}\n", 3),
        ("user alice\ntopic read a/#\nuser\ntopic readwrite #\n", 3),
        ("user alice\ntopic read a/#\nUser bob\ntopic readwrite #\n", 3),
    ],
    ids=["deny", "nameless", "misspelt"],
)
def test_nothing_is_applied_that_gives_more_than_it_did(make_server, tmp_path, acl, line):
    server, file = make_server(), tmp_path / "acl"
    file.write_text(acl)
    command = [server.binary, "import", "mosquitto", "--acl", file, "--apply", "--data-dir", server.data_dir]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, env=server.environment())
    assert done.returncode == PARTIAL and f"in line {line} of the ACL file" in done.stderr, done
    assert server.sql("SHOW USERS") == []


def test_a_file_of_the_real_program(make_server, tmp_path):
    if shutil.which("mosquitto_passwd") is None:
        pytest.skip("mosquitto_passwd is not installed (apt-get install mosquitto)")
    server, passwd, name = make_server(), tmp_path / "passwd", unique("user")
    run("mosquitto_passwd", "-b", "-c", str(passwd), name, "a real password")
    server.cli("import", "mosquitto", "--passwd", str(passwd), "--apply")
    assert connack(server, name, "a real password") == 0
    assert connack(server, name, "another password") == BAD_PASSWORD
