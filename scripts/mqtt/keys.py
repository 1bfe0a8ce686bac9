"""What clients and brokers show each other, made by openssl: certificates of an authority, and a JSON Web Token."""

import base64
import json
import shutil
import subprocess
import time

YEAR = 365 * 24 * 3600


class Keys:
    """Files in a directory: `ca`, the broker's `server`, a client's `client`, each (certificate, key); `jwks`; and `token`."""

    def __init__(self, folder, subject):
        self.folder, self.subject = folder, subject
        self.ca = self.folder / "ca.pem"
        self._new_key("ca")
        self._openssl("req", "-x509", "-new", "-key", self._path("ca.key"), "-out", self.ca, "-days", "30", "-subj", "/CN=bench")
        self.server = self._issue("server", "localhost", "serverAuth")
        self.client = self._issue("client", subject, "clientAuth")
        self.jwks = self._path("jwks.json")
        self.token = self._sign_token()

    def _path(self, name):
        return self.folder / name

    def _openssl(self, *words, data=None):
        command = ["openssl", *map(str, words)]
        done = subprocess.run(command, input=data, capture_output=True, timeout=60)
        if done.returncode:
            raise RuntimeError(f"{' '.join(command)} ended with {done.returncode}: {done.stderr.decode()}")
        return done.stdout

    def _new_key(self, name):
        path = self._path(f"{name}.key")
        self._openssl("ecparam", "-name", "prime256v1", "-genkey", "-noout", "-out", path)
        return path

    def _issue(self, name, common_name, usage):
        key, request, certificate = self._new_key(name), self._path(f"{name}.csr"), self._path(f"{name}.pem")
        self._openssl("req", "-new", "-key", key, "-out", request, "-subj", f"/CN={common_name}")
        extensions = self._path(f"{name}.ext")
        extensions.write_text(f"subjectAltName=DNS:{common_name}\nextendedKeyUsage={usage}\nbasicConstraints=CA:FALSE\n")
        self._openssl(
            "x509", "-req", "-in", request, "-CA", self.ca, "-CAkey", self._path("ca.key"), "-CAcreateserial",
            "-out", certificate, "-days", "30", "-extfile", extensions,
        )  # fmt: skip
        return certificate, key

    def _sign_token(self):
        """A token of ES256 (RFC 7518, 3.4), and the set of keys by which it is checked."""
        key = self._new_key("token")
        # A public key ends with its point: 0x04, x and y of 32 bytes each.
        point = self._openssl("pkey", "-in", key, "-pubout", "-outform", "DER")[-64:]
        jwk = {"kty": "EC", "crv": "P-256", "alg": "ES256", "kid": "bench", "x": encoded(point[:32]), "y": encoded(point[32:])}
        self.jwks.write_text(json.dumps({"keys": [jwk]}))
        claims = {"sub": self.subject, "exp": int(time.time()) + YEAR}
        parts = ({"alg": "ES256", "kid": "bench"}, claims)
        signed = ".".join(encoded(json.dumps(part).encode()) for part in parts)
        return f"{signed}.{encoded(plain(self._openssl('dgst', '-sha256', '-sign', key, data=signed.encode())))}"


def encoded(data):
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def plain(der):
    """r and s of 32 bytes each, of a signature as ASN.1 has it: a sequence of two integers."""
    numbers, at = [], 2
    for _ in range(2):
        length = der[at + 1]
        numbers.append(int.from_bytes(der[at + 2 : at + 2 + length], "big"))
        at += 2 + length
    return b"".join(number.to_bytes(32, "big") for number in numbers)


def available():
    return shutil.which("openssl") is not None
