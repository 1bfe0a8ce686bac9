"""Clients that connect and are quiet: over TLS and by SCRAM, which `sonde bench mqtt` does not speak, and many users."""

import base64
import hashlib
import hmac
import os
import socket
import ssl
import struct
import time
from concurrent.futures import ThreadPoolExecutor

import brokers

THREADS = 4  # that connect; more than the cores, since each waits for its answer
TIMEOUT = 60
KEEP_ALIVE = 600
CONNACK, AUTH = 0x20, 0xF0
CONTINUE = 0x18
METHOD, DATA = 0x15, 0x16  # properties of MQTT 5


def text(value):
    value = value.encode() if isinstance(value, str) else value
    return struct.pack(">H", len(value)) + value


def number(value):
    """A variable byte integer."""
    out = bytearray()
    while value >= 0x80:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*out, value])


def packet(first, body):
    return bytes([first]) + number(len(body)) + body


def connect_packet(client_id, username=None, password=None, properties=b""):
    """CONNECT of MQTT 5 with a clean start."""
    flags = 2 | (username is not None) << 7 | (password is not None) << 6
    words = [text(word) for word in (client_id, username, password) if word is not None]
    head = text("MQTT") + bytes([5, flags]) + struct.pack(">H", KEEP_ALIVE)
    return packet(0x10, head + number(len(properties)) + properties + b"".join(words))


def exactly(connection, count):
    data = b""
    while len(data) < count:
        more = connection.recv(count - len(data))
        if not more:
            raise RuntimeError("the broker has closed the connection")
        data += more
    return data


def answer(connection, kind):
    """The body of the next packet, which must be of this kind."""
    first, length, shift = exactly(connection, 1)[0], 0, 0
    while True:
        byte = exactly(connection, 1)[0]
        length |= (byte & 0x7F) << shift
        shift += 7
        if byte < 0x80:
            break
    body = exactly(connection, length)
    if first != kind:
        raise RuntimeError(f"expected packet {kind:#04x}, found {first:#04x} {body.hex()}")
    return body


def come_in(connection, connect):
    connection.sendall(connect)
    body = answer(connection, CONNACK)
    if body[1]:
        raise RuntimeError(f"CONNACK says {body[1]:#04x}")
    return connection


def dial(port):
    return socket.create_connection(("127.0.0.1", port), timeout=TIMEOUT)


class Plain:
    """Users with passwords over TCP, each connection the next one."""

    def __init__(self, port, users):
        self.port, self.users = port, users

    def open(self, n):
        name, password = self.users[n % len(self.users)]
        return come_in(dial(self.port), connect_packet(f"quiet-{n}", name, password))


class Tls:
    """TLS, with a client certificate where there is one; no session is resumed."""

    def __init__(self, port, keys, certificate=False):
        self.port = port
        self.context = ssl.create_default_context(cafile=keys.ca)
        if certificate:
            self.context.load_cert_chain(*keys.client)

    def open(self, n):
        secured = self.context.wrap_socket(dial(self.port), server_hostname="localhost")
        return come_in(secured, connect_packet(f"quiet-{n}"))


class Scram:
    """SCRAM-SHA-256 (RFC 5802). Clients derive their key once, as libraries do: it is not the broker's work."""

    def __init__(self, port, name, password):
        self.port, self.name, self.password = port, name, password
        self.salted = {}

    def open(self, n):
        connection = dial(self.port)
        nonce = base64.b64encode(os.urandom(18)).decode()
        bare = f"n={self.name},r={nonce}"
        connection.sendall(connect_packet(f"quiet-{n}", properties=said(f"n,,{bare}")))
        body = answer(connection, AUTH)
        if body[0] != CONTINUE:
            raise RuntimeError(f"AUTH says {body[0]:#04x}")
        challenge = body[body.index(b"r=" + nonce.encode()) :].decode()
        final = packet(AUTH, bytes([CONTINUE]) + with_length(said(self.proof(bare, challenge))))
        return come_in(connection, final)

    def proof(self, bare, challenge):
        told = dict(part.split("=", 1) for part in challenge.split(","))
        kind = told["s"], int(told["i"])
        if kind not in self.salted:
            salt = base64.b64decode(told["s"])
            self.salted[kind] = hashlib.pbkdf2_hmac("sha256", self.password.encode(), salt, kind[1])
        client_key = mac(self.salted[kind], "Client Key")
        without_proof = f"c=biws,r={told['r']}"
        signature = mac(hashlib.sha256(client_key).digest(), f"{bare},{challenge},{without_proof}")
        proof = bytes(a ^ b for a, b in zip(client_key, signature))
        return f"{without_proof},p={base64.b64encode(proof).decode()}"


def mac(key, message):
    return hmac.new(key, message.encode(), hashlib.sha256).digest()


def said(data):
    return bytes([METHOD]) + text("SCRAM-SHA-256") + bytes([DATA]) + text(data)


def with_length(properties):
    return number(len(properties)) + properties


def measure(broker, kind, count):
    """Opens so many connections and holds them; what one of them costs the broker."""
    brokers.allow_files()
    memory, cpu, began = broker.anonymous_bytes(), broker.cpu_seconds(), time.monotonic()
    with ThreadPoolExecutor(THREADS) as pool:
        connections = list(pool.map(kind.open, range(count)))
    seconds, cpu = time.monotonic() - began, broker.cpu_seconds() - cpu
    memory = broker.anonymous_bytes() - memory
    for connection in connections:
        connection.close()
    return {
        "connections": count,
        "seconds": seconds,
        "cpu_seconds": cpu,
        "per_second": count / seconds,
        "connections_per_cpu_second": count / cpu,
        "bytes_per_connection": memory / count,
    }
