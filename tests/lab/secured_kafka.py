"""A Kafka broker with three secured listeners: SASL in plain text, SASL over TLS, and mutual TLS."""

import asyncio
import subprocess
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import pytest

from tests.lab.kafka import Broker, KafkaCluster
from tests.lab.kafka_home import kafka_home
from tests.lab.kafka_security import Certificates, Security, add_user_command, jaas_config
from tests.lab.machine import free_port

MECHANISMS: Final = ("PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512")
USER, PASSWORD = "agent", "agent-secret"


@dataclass(frozen=True, slots=True)
class Listeners:
    """The secured listeners of a broker, and the certificates.

    Attributes:
        clear: address of the listener for SASL in plain text, which does not offer SCRAM-SHA-512.
        tls: address of the listener for SASL over TLS.
        mutual: address of the listener for mutual TLS.
        certificates: the certificates of the broker and of its clients.
        foreign: certificates of another authority.
        folder: a directory for files.
        cluster: the broker. Its default listener needs no credentials.
    """

    clear: str
    tls: str
    mutual: str
    certificates: Certificates
    foreign: Certificates
    folder: Path
    cluster: KafkaCluster


def _properties(broker: Broker, ports: Mapping[str, int], certificates: Certificates) -> dict[str, object]:
    """Return the broker properties of the additional listeners."""
    addresses = {name: f"{name}://127.0.0.1:{port}" for name, port in {**broker.ports, **ports}.items()}
    properties: dict[str, object] = {
        "listeners": ",".join(addresses.values()),
        "advertised.listeners": ",".join(addresses[name] for name in ("CLIENT", "INTERNAL", *ports)),
        "listener.security.protocol.map": "CLIENT:PLAINTEXT,INTERNAL:PLAINTEXT,CONTROLLER:PLAINTEXT,"
        "CLEAR:SASL_PLAINTEXT,TLS:SASL_SSL,MUTUAL:SSL",
        "listener.name.clear.sasl.enabled.mechanisms": ",".join(MECHANISMS[:2]),
        "listener.name.tls.sasl.enabled.mechanisms": ",".join(MECHANISMS),
        "authorizer.class.name": "org.apache.kafka.metadata.authorizer.StandardAuthorizer",
        "allow.everyone.if.no.acl.found": "true",
    }
    for name in ("tls", "mutual"):
        security = Security(certificates=certificates, client_certificates=name == "mutual")
        properties |= security.broker_properties(name)
    for name in ("clear", "tls"):
        for mechanism in MECHANISMS:
            config = jaas_config(mechanism, {USER: PASSWORD})
            properties[f"listener.name.{name}.{mechanism.lower()}.sasl.jaas.config"] = config
    return properties


@pytest.fixture(scope="session")
def _secured_broker() -> Iterator[Listeners]:
    with tempfile.TemporaryDirectory(prefix="qmp-") as path, asyncio.Runner() as runner:
        folder = Path(path)
        certificates, foreign = Certificates.make(folder / "own"), Certificates.make(folder / "foreign")
        cluster = KafkaCluster(folder / "kafka")
        (broker,) = cluster.brokers
        ports = {name: free_port() for name in ("CLEAR", "TLS", "MUTUAL")}
        cluster._properties |= _properties(broker, ports, certificates)
        runner.run(cluster.start())
        try:
            clear, tls, mutual = (f"127.0.0.1:{port}" for port in ports.values())
            yield Listeners(clear, tls, mutual, certificates, foreign, folder, cluster)
        finally:
            runner.run(cluster.stop())


@pytest.fixture(scope="session")
def kafka(_secured_broker: Listeners) -> KafkaCluster:
    """A broker that all tests of this directory share."""
    return _secured_broker.cluster


@pytest.fixture(scope="session")
def listeners(_secured_broker: Listeners) -> Listeners:
    """The secured listeners of the broker in the fixture `kafka`."""
    _add_user(_secured_broker.cluster.brokers[0].internal)
    return _secured_broker


def _add_user(broker: str) -> None:
    """Add the user for each SCRAM mechanism. Each mechanism takes one or two seconds, because Kafka's tool is a Java program."""
    commands = [add_user_command(kafka_home(), broker, name, USER, PASSWORD) for name in MECHANISMS[1:]]
    running = [subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) for command in commands]
    assert [process.wait(120) for process in running] == [0, 0]
