"""How the clients of the lab's Kafka say who they are, and whether they are overheard: SASL and TLS."""

import ssl
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.lab.kafka_home import java_command


@dataclass(frozen=True, slots=True)
class Certificates:
    """Files in PEM, made by openssl: an authority of our own, and what it has signed.

    Attributes:
        authority: the authority's certificate.
        server: key and certificate of 127.0.0.1 and localhost, in one file.
        client: key and certificate of a client, in one file.
    """

    authority: Path
    server: Path
    client: Path

    @classmethod
    def make(cls, folder: Path) -> "Certificates":
        """Make them in a folder; takes openssl and a tenth of a second."""
        folder.mkdir(parents=True, exist_ok=True)
        new = [
            "openssl",
            "req",
            "-x509",
            "-newkey",
            "ec",
            "-pkeyopt",
            "ec_paramgen_curve:P-256",
            "-nodes",
            "-days",
            "2",
        ]

        def run(name: str, *more: str) -> None:
            files = ["-keyout", f"{name}.key", "-out", f"{name}.crt", "-subj", f"/CN={name}"]
            subprocess.run([*new, *files, *more], cwd=folder, check=True, capture_output=True)

        run("authority", "-addext", "keyUsage=critical,keyCertSign,cRLSign")
        for name in ("server", "client"):
            names = "subjectAltName=DNS:localhost,IP:127.0.0.1"
            signed = [
                "-CA",
                "authority.crt",
                "-CAkey",
                "authority.key",
                "-addext",
                "basicConstraints=critical,CA:FALSE",
            ]
            run(name, *signed, "-addext", names)
            both = (folder / f"{name}.key").read_text() + (folder / f"{name}.crt").read_text()
            (folder / f"{name}.pem").write_text(both)
        return cls(folder / "authority.crt", folder / "server.pem", folder / "client.pem")


def login(mechanism: str, users: Mapping[str, str]) -> str:
    """Return how a broker checks passwords, given those that users have; of SCRAM's it is told while it runs."""
    if mechanism == "PLAIN":
        known = "".join(f' user_{name}="{password}"' for name, password in users.items())
        return f"org.apache.kafka.common.security.plain.PlainLoginModule required{known};"
    return "org.apache.kafka.common.security.scram.ScramLoginModule required;"


def adding(home: Path, broker: str, mechanism: str, name: str, password: str) -> list[str]:
    """Return the command that tells a running broker of a user."""
    return [
        *(*java_command(home), "kafka.admin.ConfigCommand", "--bootstrap-server", broker, "--alter"),
        *("--add-config", f"{mechanism}=[password={password}]", "--entity-type", "users", "--entity-name", name),
    ]


@dataclass(frozen=True, slots=True, kw_only=True)
class Security:
    """How clients reach the brokers; brokers speak plain text among themselves whatever it is.

    Attributes:
        mechanism: the SASL mechanism, `PLAIN`, `SCRAM-SHA-256` or `SCRAM-SHA-512`; None: anybody may come.
        users: passwords by user name.
        certificates: the brokers' keys and certificates; None: no TLS.
        client_certificates: whether clients must have one too.
    """

    mechanism: str | None = None
    users: Mapping[str, str] = field(default_factory=lambda: {"agent": "agent-secret"})
    certificates: Certificates | None = None
    client_certificates: bool = False

    @property
    def protocol(self) -> str:
        """Kafka's name for it."""
        transport = "SSL" if self.certificates else "PLAINTEXT"
        return f"SASL_{transport}" if self.mechanism else transport

    def broker_properties(self, listener: str) -> dict[str, object]:
        """Return the settings of a broker's listener of that name, in lower case."""
        prefix = f"listener.name.{listener}"
        found: dict[str, object] = {}
        if self.mechanism is not None:
            found[f"{prefix}.sasl.enabled.mechanisms"] = self.mechanism
            found[f"{prefix}.{self.mechanism.lower()}.sasl.jaas.config"] = login(self.mechanism, self.users)
        if self.certificates is not None:
            found[f"{prefix}.ssl.keystore.type"] = "PEM"
            found[f"{prefix}.ssl.keystore.location"] = self.certificates.server
            found[f"{prefix}.ssl.truststore.type"] = "PEM"
            found[f"{prefix}.ssl.truststore.location"] = self.certificates.authority
            found[f"{prefix}.ssl.client.auth"] = "required" if self.client_certificates else "none"
        return found

    def add_users(self, home: Path, broker: str) -> None:
        """Tell a running broker of the users, where that is how it learns of them; takes a second each. Blocks."""
        if self.mechanism is None or self.mechanism == "PLAIN":
            return
        for name, password in self.users.items():
            subprocess.run(adding(home, broker, self.mechanism, name, password), check=True, capture_output=True)

    def client(self) -> dict[str, Any]:
        """Return what a client of aiokafka's takes to connect as the first user, as keyword arguments."""
        found: dict[str, Any] = {"security_protocol": self.protocol}
        if self.mechanism is not None:
            name, password = next(iter(self.users.items()))
            found |= {"sasl_mechanism": self.mechanism, "sasl_plain_username": name, "sasl_plain_password": password}
        if self.certificates is not None:
            context = ssl.create_default_context(cafile=self.certificates.authority)
            if self.client_certificates:
                context.load_cert_chain(self.certificates.client)
            found["ssl_context"] = context
        return found
