"""Certificates for one test, made by openssl: an authority, the server's, clients'."""

from support import run, tool


class Authority:
    """An authority in a directory. Files: `ca` and, for each name, `<name>.pem` and `<name>.key`."""

    def __init__(self, directory, name="test authority"):
        self.openssl = tool("openssl", "openssl")
        self.directory = directory
        directory.mkdir(exist_ok=True)
        self.ca = str(directory / "ca.pem")
        self._key(self._path("ca.key"))
        run(
            self.openssl, "req", "-x509", "-new", "-key", self._path("ca.key"), "-out", self.ca, "-days", "30",
            "-subj", f"/CN={name}",
        )  # fmt: skip

    def _path(self, name):
        return str(self.directory / name)

    def _key(self, path):
        run(self.openssl, "ecparam", "-name", "prime256v1", "-genkey", "-noout", "-out", path)

    def issue(self, name, common_name=None, names="DNS:localhost,IP:127.0.0.1", usage="serverAuth"):
        """(certificate, key): files of a new pair, which replace those of the same name."""
        key, request, extensions = (self._path(f"{name}{end}") for end in (".key", ".csr", ".ext"))
        certificate = self._path(f"{name}.pem")
        self._key(key)
        run(self.openssl, "req", "-new", "-key", key, "-out", request, "-subj", f"/O=Acme/CN={common_name or name}")
        with open(extensions, "w") as file:
            file.write(f"subjectAltName={names}\nextendedKeyUsage={usage}\nbasicConstraints=CA:FALSE\n")
        run(
            self.openssl, "x509", "-req", "-in", request, "-CA", self.ca, "-CAkey", self._path("ca.key"),
            "-CAcreateserial", "-out", certificate, "-days", "30", "-extfile", extensions,
        )  # fmt: skip
        return certificate, key

    def client(self, name, common_name=None, names="DNS:device.example"):
        return self.issue(name, common_name, names, "clientAuth")

    def settings(self):
        """What makes a server listen with TLS, on ports of its own."""
        certificate, key = self.issue("server")
        return [
            f"tls.cert={certificate}",
            f"tls.key={key}",
            "mqtt.tls_listen=127.0.0.1:0",
            "mqtt.wss_listen=127.0.0.1:0",
        ]
