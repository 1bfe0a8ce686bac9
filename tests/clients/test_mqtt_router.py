"""What many subscriptions weigh, and that they come and go without a trace."""

import contextlib
import socket
import struct

from paho_client import ANSWER_SECONDS, Client
from support import unique, wait_until

CLIENTS, PACKETS, FILTERS = 20, 10, 100  # a session has at most 1,024 subscriptions
BYTES = 1024  # of memory for a subscription, in all structures together


def length(count):
    """A remaining length."""
    digits = bytearray()
    while True:
        count, digit = divmod(count, 128)
        digits.append(digit | (128 if count else 0))
        if not count:
            return bytes(digits)


def packet(first_byte, body):
    return bytes([first_byte]) + length(len(body)) + body


def text(value):
    return struct.pack(">H", len(value)) + value.encode()


def subscriber(server, prefix, number):
    """A connection that has subscribed to a thousand filters, every other one with wildcards."""
    connection = socket.create_connection(server.address("mqtt"), ANSWER_SECONDS)
    sent = packet(0x10, text("MQTT") + bytes([4, 2, 0, 0]) + text(f"{prefix}-{number}"))
    for packet_id in range(1, PACKETS + 1):
        body = struct.pack(">H", packet_id)
        for n in range(FILTERS):
            device = (number * PACKETS + packet_id) * FILTERS + n
            name = f"acme/siteA/pump/d{device}/reading" if n % 2 else f"acme/+/pump/d{device}/#"
            body += text(name) + b"\x01"
        sent += packet(0x82, body)
    connection.sendall(sent)
    expected = 4 + PACKETS * (4 + FILTERS)  # CONNACK; each SUBACK, whose length has one byte
    answers = b""
    while len(answers) < expected:
        received = connection.recv(1 << 16)
        assert received, "the server closed the connection"
        answers += received
    assert 0x80 not in answers[4:], "a subscription was refused"
    return connection


def resident(server):
    with open(f"/proc/{server.process.pid}/status") as status:
        return next(int(line.split()[1]) * 1024 for line in status if line.startswith("VmRSS"))


def test_a_subscription_takes_less_than_a_kilobyte(make_server):
    server, prefix = make_server(), unique("many")
    count = f"SELECT count(*) FROM system.subscriptions WHERE client LIKE '{prefix}-%'"
    assert server.sql(count) == [[0]]
    before, total = resident(server), CLIENTS * PACKETS * FILTERS
    with contextlib.ExitStack() as stack:
        for number in range(CLIENTS):
            stack.enter_context(subscriber(server, prefix, number))
        each = (resident(server) - before) / total
        assert server.sql(count) == [[total]]
        assert each < BYTES, f"{each:.0f} bytes for each subscription"
        with Client(server) as other:
            other.subscribe("acme/siteA/pump/+/reading")
            other.publish("acme/siteA/pump/d150/reading", "1")
            other.next_is("acme/siteA/pump/d150/reading", "1")
    wait_until(lambda: server.sql(count) == [[0]], "the end of all subscriptions")
