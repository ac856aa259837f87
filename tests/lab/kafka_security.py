"""SASL and TLS for the Kafka brokers of the tests."""

import ssl
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.lab.kafka_home import java_command


@dataclass(frozen=True, slots=True)
class Certificates:
    """PEM files made by openssl: a certificate authority, and certificates that it has signed.

    Attributes:
        authority: file with the authority's certificate.
        server: file with the key and the certificate of a server at 127.0.0.1 and localhost.
        client: file with the key and the certificate of a client.
    """

    authority: Path
    server: Path
    client: Path

    @classmethod
    def make(cls, folder: Path) -> "Certificates":
        """Make the files in a directory with openssl, in a tenth of a second."""
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


def jaas_config(mechanism: str, users: Mapping[str, str]) -> str:
    """Return the JAAS config of a listener, with the users' passwords. SCRAM users are added later, while the broker runs."""
    if mechanism == "PLAIN":
        entries = "".join(f' user_{name}="{password}"' for name, password in users.items())
        return f"org.apache.kafka.common.security.plain.PlainLoginModule required{entries};"
    return "org.apache.kafka.common.security.scram.ScramLoginModule required;"


def add_user_command(home: Path, broker: str, mechanism: str, name: str, password: str) -> list[str]:
    """Return the command that adds a SCRAM user to a running broker."""
    return [
        *(*java_command(home), "kafka.admin.ConfigCommand", "--bootstrap-server", broker, "--alter"),
        *("--add-config", f"{mechanism}=[password={password}]", "--entity-type", "users", "--entity-name", name),
    ]


@dataclass(frozen=True, slots=True, kw_only=True)
class Security:
    """TLS and authentication of the client listeners. The brokers use plain text among themselves.

    Attributes:
        mechanism: the SASL mechanism, `PLAIN`, `SCRAM-SHA-256` or `SCRAM-SHA-512`; None for no authentication.
        users: passwords by user name.
        certificates: the brokers' keys and certificates; None for no TLS.
        client_certificates: whether clients must have a certificate.
    """

    mechanism: str | None = None
    users: Mapping[str, str] = field(default_factory=lambda: {"agent": "agent-secret"})
    certificates: Certificates | None = None
    client_certificates: bool = False

    @property
    def protocol(self) -> str:
        """Kafka's name of the security protocol."""
        transport = "SSL" if self.certificates else "PLAINTEXT"
        return f"SASL_{transport}" if self.mechanism else transport

    def broker_properties(self, listener: str) -> dict[str, object]:
        """Return the broker properties of a listener. The listener's name must be in lower case."""
        prefix = f"listener.name.{listener}"
        properties: dict[str, object] = {}
        if self.mechanism is not None:
            properties[f"{prefix}.sasl.enabled.mechanisms"] = self.mechanism
            properties[f"{prefix}.{self.mechanism.lower()}.sasl.jaas.config"] = jaas_config(self.mechanism, self.users)
        if self.certificates is not None:
            properties[f"{prefix}.ssl.keystore.type"] = "PEM"
            properties[f"{prefix}.ssl.keystore.location"] = self.certificates.server
            properties[f"{prefix}.ssl.truststore.type"] = "PEM"
            properties[f"{prefix}.ssl.truststore.location"] = self.certificates.authority
            properties[f"{prefix}.ssl.client.auth"] = "required" if self.client_certificates else "none"
        return properties

    def add_users(self, home: Path, broker: str) -> None:
        """Add the users of a SCRAM mechanism to a running broker. Each takes about a second. Blocks."""
        if self.mechanism is None or self.mechanism == "PLAIN":
            return
        for name, password in self.users.items():
            subprocess.run(
                add_user_command(home, broker, self.mechanism, name, password), check=True, capture_output=True
            )

    def client(self) -> dict[str, Any]:
        """Return keyword arguments for an aiokafka client that connects as the first user."""
        options: dict[str, Any] = {"security_protocol": self.protocol}
        if self.mechanism is not None:
            name, password = next(iter(self.users.items()))
            options |= {"sasl_mechanism": self.mechanism, "sasl_plain_username": name, "sasl_plain_password": password}
        if self.certificates is not None:
            context = ssl.create_default_context(cafile=self.certificates.authority)
            if self.client_certificates:
                context.load_cert_chain(self.certificates.client)
            options["ssl_context"] = context
        return options
