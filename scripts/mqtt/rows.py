"""The rows of the table: each a load, given to SondeDB and to Mosquitto one after the other."""

import json
import statistics
import subprocess

import brokers
import clients

# A device's reading: about 100 bytes of JSON; its time makes every message a row of its own.
TOPIC = "acme/siteA/pump/d{client}/reading"
READING = (
    '{"device":"d{client}","ts":{time},"temperature":{random:20.00:30.00},'
    '"vibration":{random:0.000:0.100},"state":{random:0:4}}'
)
# The same with what a subscriber recognises it by, in the place of the numbers.
STAMPED = '{"device":"d{client}","ts":{time},"temperature":{random:20.00:30.00},"stamp":"{stamp}"}'
RUN_SECONDS = 300  # more than any single load takes
QUIET = 10_000
QUIET_TLS = 2_000  # of a client that is slower than the broker
SCRAM = 2_000
USERS = 64  # whose passwords are hashed
PASSWORD = "correct horse battery"
ROUNDS = 3  # of the session that is away
SUBSCRIPTIONS = 100_000
OFFLINE = 400_000


class Bench:
    """What every row needs: the programs, and how long a load lasts."""

    def __init__(self, sonde, mosquitto, keys, quick):
        self.sonde_program, self.mosquitto_program, self.keys, self.quick = sonde, mosquitto, keys, quick
        self.seconds = 1.5 if quick else 6

    def sonde(self, stored=True, settings=()):
        return brokers.Sonde(self.sonde_program, stored, settings)

    def scaled(self, count):
        return count // 20 if self.quick else count

    def both(self, stored=True):
        """SondeDB, then Mosquitto where it is installed, with their names."""
        name = "SondeDB, stored and durable" if stored else "SondeDB, broker only"
        yield name, self.sonde(stored)
        if self.mosquitto_program:
            yield "Mosquitto, no persistence", brokers.Mosquitto(self.mosquitto_program)

    def load(self, broker, *flags, partial=False):
        """Runs a load; its figures. `partial`: that something is lost is a figure, no failure."""
        command = [self.sonde_program, "bench", "mqtt", "--json", "--port", broker.port, "--pid", broker.pid, *flags]
        if not {"--messages", "--duration"} & set(flags):
            command += ["--duration", self.seconds]
        done = subprocess.run([str(word) for word in command], capture_output=True, text=True, timeout=RUN_SECONDS)
        if done.returncode not in ((0, 3) if partial else (0,)):
            raise RuntimeError(f"{' '.join(map(str, command))} ended with {done.returncode}: {done.stderr}")
        return json.loads(done.stdout)


def number(value):
    return "-" if value is None else f"{value:,.0f}"


def throughput(found):
    messages, process = found["messages"], found["process"]
    return (
        f"{number(process['messages_per_cpu_second'])} per CPU second; {number(messages['per_second'])}/s; "
        f"PUBACK {percentiles(found['acknowledgement_ms'])}"
    )


def percentiles(found):
    return " / ".join(f"{found[name]:.2f}" for name in ("p50", "p99", "p99.9")) + " ms (p50 / p99 / p99.9)"


def row(load, broker, figures, goal, raw):
    return {"load": load, "broker": broker, "figures": figures, "goal": goal, "raw": raw}


def publishing(bench, load, goal, connections, in_flight, stored):
    """QoS 1 as fast as acknowledgements come; what SondeDB acknowledged must be in the table."""
    flags = ["--connections", connections, "--in-flight", in_flight, "--topic", TOPIC, "--payload", READING]
    for name, made in bench.both(stored):
        with made as broker:
            found = bench.load(broker, *flags)
            if name.startswith("SondeDB") and stored and broker.count("acme") != found["messages"]["acknowledged"]:
                raise RuntimeError(f"{broker.count('acme')} rows of {found['messages']['acknowledged']} acknowledged")
            yield row(load, name, throughput(found), goal if name.startswith("SondeDB") else "", found)


def typed_10(bench):
    load = "JSON to typed row, QoS 1, 10 connections x 64"
    return publishing(bench, load, ">= 250,000 per CPU second", 10, 64, True)


def typed_1000(bench):
    return publishing(bench, "the same, 1,000 x 4", ">= 120,000 per CPU second", 1000, 4, True)


def broker_only(bench):
    load = "no source, no subscriber, QoS 1, 10 x 64"
    return publishing(bench, load, ">= 800,000 per CPU second", 10, 64, False)


def broker_only_1000(bench):
    return publishing(bench, "the same, 1,000 x 4", "", 1000, 4, False)


def subscriber(bench):
    """One subscriber of everything. What it does not get within five seconds is lost."""
    for stored in (True, False):
        made = list(bench.both(stored))
        for name, maker in made if not stored else made[:1]:
            with maker as broker:
                flags = ["--subscribers", 1, "--topic", TOPIC, "--payload", STAMPED]
                found = bench.load(broker, *flags, partial=True)
            deliveries, process = found["deliveries"], found["process"]
            figures = (
                f"{number(deliveries['per_second'])}/s delivered, {number(process['deliveries_per_cpu_second'])} per CPU "
                f"second; {number(deliveries['lost'])} lost, {number(deliveries['duplicated'])} twice"
            )
            goal = "" if name.startswith("Mosq") else ">= 2 x Mosquitto, nothing lost"
            yield row("one subscriber on `#`, QoS 1, 10 x 64", name, figures, goal, found)


def puback_latency(bench):
    flags = ["--connections", 100, "--rate", 5000, "--topic", TOPIC, "--payload", READING]
    for name, maker in bench.both():
        with maker as broker:
            found = bench.load(broker, *flags)
        goal = "" if name.startswith("Mosq") else "2 / 5 / 15 ms"
        figures = f"PUBACK {percentiles(found['acknowledgement_ms'])}"
        yield row("5,000 messages/s, 100 connections", name, figures, goal, found)


def delivery_latency(bench):
    flags = ["--connections", 100, "--rate", 5000, "--subscribers", 1, "--topic", TOPIC, "--payload", STAMPED]
    for stored in (True, False):
        made = list(bench.both(stored))
        for name, maker in made if not stored else made[:1]:
            with maker as broker:
                found = bench.load(broker, *flags, partial=True)
            goal = "" if name.startswith("Mosq") else ("2 / 5 ms" if stored else "0.5 / 5 ms")
            figures = f"delivery {percentiles(found['delivery_ms'])}; {number(found['deliveries']['lost'])} lost"
            yield row("publish to subscriber, 5,000/s, 100 connections", name, figures, goal, found)


def subscriptions(bench):
    """Topics share all but the last level with many filters and match none: what looking them up costs."""
    count = bench.scaled(SUBSCRIPTIONS)
    # Sessions of SondeDB have at most 1,024 subscriptions.
    having = ["--subscribers", max(1, count // 1000), "--subscriptions", count, "--filter", "s/{n}/v", "--filter", "s/+/w{n}"]
    flags = ["--topic", "s/{client}/x", "--size", 100]
    for name, maker in bench.both(stored=False):
        with maker as broker:
            flat = bench.load(broker, *flags)
            found = bench.load(broker, *flags, *having)
        rate = found["process"]["messages_per_cpu_second"] / flat["process"]["messages_per_cpu_second"]
        figures = (
            f"{rate:.2f} x the flat rate per CPU second ({number(found['process']['messages_per_cpu_second'])}); "
            f"{number(found['process']['bytes_per_subscription'])} bytes each"
        )
        goal = "" if name.startswith("Mosq") else ">= 0.5 x, <= 1,024 bytes each"
        yield row(f"{count:,} subscriptions, half with `+`", name, figures, goal, {"flat": flat, "with": found})


def quiet(bench):
    """Connections that do nothing, made by a client on the same two cores: one row for each kind of password."""
    count = bench.scaled(QUIET)
    kinds = [("no password", bench.sonde(), lambda _: None)]
    kinds.append(("token", bench.sonde(), lambda broker: ("token", broker.token())))
    kinds.append(("password that was right before", bench.sonde(), remembered))
    if bench.keys:
        settings = [f"auth.jwks={bench.keys.jwks}"]
        kinds.append(("JSON Web Token, ES256", bench.sonde(settings=settings), lambda broker: signed(bench, broker)))
    if bench.mosquitto_program:
        kinds.append(("no password", brokers.Mosquitto(bench.mosquitto_program), lambda _: None))
    # Each in a process of its own: what earlier connections took is used again by later ones.
    for kind, maker, credentials in kinds:
        with maker as broker:
            name, password = credentials(broker) or (None, None)
            flags = ["--username", name, "--password", password] if password else []
            if kind.startswith("password"):
                bench.load(broker, "--connections", 0, "--quiet", 1, "--duration", 0, *flags)
            found = bench.load(broker, "--connections", 0, "--quiet", count, "--duration", 0, *flags)
        process, each = found["process"], f"{number(found['process']['bytes_per_quiet_connection'])} bytes each; "
        figures = (
            # Beside the memory that a hash took, and gives back, that of connections does not show.
            f"{'' if kind.startswith('password') else each}{number(found['quiet']['per_second'])} connections/s, "
            f"{number(process['connections_per_cpu_second'])} per CPU second"
        )
        is_ours = isinstance(maker, brokers.Sonde)
        goal = "<= 5,120 bytes; 10,000/s" if is_ours and kind in ("no password", "token") else ""
        yield row(f"{count:,} quiet TCP connections, {kind}", "SondeDB" if is_ours else "Mosquitto", figures, goal, found)


def remembered(broker):
    broker.sql(f"CREATE USER bench PASSWORD '{PASSWORD}'")
    return "bench", PASSWORD


def signed(bench, broker):
    broker.sql(f"CREATE USER {bench.keys.subject}")
    return "jwt", bench.keys.token


def quiet_tls(bench):
    """The same over TLS, by a client in Python that resumes nothing."""
    if not bench.keys:
        return
    count = bench.scaled(QUIET_TLS)
    certificate, key = bench.keys.server
    doors = ["mqtt.tls_listen=127.0.0.1:0", "mqtt.wss_listen=127.0.0.1:0"]
    settings = [f"tls.cert={certificate}", f"tls.key={key}", f"tls.client_ca={bench.keys.ca}", *doors]
    makers = [(kind, bench.sonde(settings=settings)) for kind in ("no password", "client certificate")]
    if bench.mosquitto_program:
        makers.append(("no password", brokers.Mosquitto(bench.mosquitto_program, keys=bench.keys)))
    for kind, maker in makers:
        with maker as broker:
            has_certificate = kind == "client certificate"
            if has_certificate:
                broker.sql(f"CREATE USER {bench.keys.subject} CERTIFICATE '{bench.keys.subject}'")
            found = clients.measure(broker, clients.Tls(broker.tls_port, bench.keys, has_certificate), count)
        is_ours = isinstance(maker, brokers.Sonde)
        figures = f"{number(found['bytes_per_connection'])} bytes each; {logins_a_second(found)}"
        load = f"{count:,} quiet TLS connections, {kind}"
        yield row(load, "SondeDB" if is_ours else "Mosquitto", figures, "<= 25,600 bytes" if is_ours else "", found)


def logins(bench):
    """What strangers cost that the broker has not seen before."""
    count = max(8, bench.scaled(USERS))
    users = [(f"bench_{n}", f"{PASSWORD} {n}") for n in range(count)]
    with bench.sonde() as broker:
        for name, password in users:
            broker.sql(f"CREATE USER {name} PASSWORD '{password}'")
        hashed = clients.measure(broker, clients.Plain(broker.port, users), count)
        scram = clients.measure(broker, clients.Scram(broker.port, *users[0]), bench.scaled(SCRAM))
    load = f"{count} users, password for the first time (argon2id, 19 MiB)"
    yield row(load, "SondeDB", logins_a_second(hashed), "", hashed)
    yield row(f"{bench.scaled(SCRAM):,} connections, SCRAM-SHA-256", "SondeDB", logins_a_second(scram), "", scram)


def logins_a_second(found):
    return (
        f"{number(found['per_second'])} connections/s, {number(found['connections_per_cpu_second'])} per CPU second"
    )


AWAY = ["--connections", 0, "--subscribers", 1, "--keep-session", "--client-prefix", "away", "--qos", 1]


def offline(bench):
    """A session on `#` that is away while messages come; then kill -9, a start, and the client comes back. With and
    without the session by turns: a single load lasts a second or two, and is no measure."""
    count = bench.scaled(OFFLINE)
    flags = ["--messages", count, "--topic", TOPIC, "--payload", STAMPED]
    settings = ["mqtt.queued_messages=1000000", "mqtt.queued_bytes=256MiB"]
    makers = [("SondeDB, stored and durable", lambda: bench.sonde(settings=settings))]
    if bench.mosquitto_program:
        makers.append(("Mosquitto, autosave 1 s", lambda: brokers.Mosquitto(bench.mosquitto_program, autosave=1)))
    for name, make in makers:
        rounds = [offline_round(bench, make, flags, count) for _ in range(1 if bench.quick else ROUNDS)]
        flat, kept = (statistics.median(one[which]["messages"]["per_second"] for one in rounds) for which in ("flat", "with"))
        more = statistics.median(one["more_bytes"] for one in rounds) / count
        lost = sum(one["back"]["deliveries"]["lost"] for one in rounds)
        figures = (
            f"{kept / flat:.2f} x the rate without it ({number(kept)}/s of {number(flat)}/s); {more:.0f} more bytes a "
            f"message written; {number(lost)} lost after {len(rounds)} x kill -9"
        )
        goal = "" if name.startswith("Mosq") else ">= 0.8 x, 0 lost"
        yield row(f"a session that is away, {count:,} messages", name, figures, goal, {"rounds": rounds})


def offline_round(bench, make, flags, count):
    with make() as broker:
        flat = bench.load(broker, *flags)
        flat_bytes = broker.bytes_written()
    with make() as broker:
        bench.load(broker, *AWAY, "--duration", 0)
        found = bench.load(broker, *flags)
        more = broker.bytes_written() - flat_bytes
        broker.kill()
        broker.start()
        back = bench.load(broker, *AWAY, "--messages", count, partial=True)
    return {"flat": flat, "with": found, "back": back, "more_bytes": more}


ROWS = {
    "typed-10": typed_10,
    "typed-1000": typed_1000,
    "broker-10": broker_only,
    "broker-1000": broker_only_1000,
    "subscriber": subscriber,
    "puback": puback_latency,
    "delivery": delivery_latency,
    "subscriptions": subscriptions,
    "quiet": quiet,
    "quiet-tls": quiet_tls,
    "logins": logins,
    "offline": offline,
}
