"""SCRAM-SHA-256 from the client's side, written after RFC 5802 and RFC 7677, for the enhanced authentication of MQTT 5.0 (4.12)."""

import base64
import hashlib
import hmac
import os

METHOD = "SCRAM-SHA-256"
AGAIN, CONTINUE = 0x19, 0x18  # reason codes of AUTH


def data(message, method=METHOD):
    """The properties that carry a message."""
    return {"authentication_method": method, "authentication_data": message}


class Scram:
    """One exchange."""

    def __init__(self, username, password, nonce_bytes=18):
        self.password, self.nonce = password, base64.b64encode(os.urandom(nonce_bytes)).decode()
        self.bare = f"n={username.replace('=', '=3D').replace(',', '=2C')},r={self.nonce}"
        self.first = f"n,,{self.bare}".encode()

    def final(self, challenge):
        """The client's final message, for the first one of the server."""
        fields = dict(part.split("=", 1) for part in challenge.decode().split(","))
        assert fields["r"].startswith(self.nonce) and fields["r"] != self.nonce
        self.salt, self.iterations = fields["s"], int(fields["i"])
        assert self.iterations >= 4096
        salted = hashlib.pbkdf2_hmac("sha256", self.password.encode(), base64.b64decode(self.salt), self.iterations)
        key = hmac.digest(salted, b"Client Key", "sha256")
        without_proof = f"c=biws,r={fields['r']}"
        message = f"{self.bare},{challenge.decode()},{without_proof}".encode()
        signature = hmac.digest(hashlib.sha256(key).digest(), message, "sha256")
        proof = bytes(a ^ b for a, b in zip(key, signature, strict=True))
        self.server_signature = hmac.digest(hmac.digest(salted, b"Server Key", "sha256"), message, "sha256")
        return f"{without_proof},p={base64.b64encode(proof).decode()}".encode()

    def check(self, last):
        assert last == b"v=" + base64.b64encode(self.server_signature), "the server does not know the password"
