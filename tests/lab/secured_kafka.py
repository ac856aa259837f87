"""One broker with a door for each way of coming in: SASL in the clear, SASL over TLS, and TLS with certificates on both sides."""

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
from tests.lab.kafka_security import Certificates, Security, adding, login
from tests.lab.machine import free_port

MECHANISMS: Final = ("PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512")
USER, PASSWORD = "agent", "agent-secret"


@dataclass(frozen=True, slots=True)
class Listeners:
    """Where a broker is reached.

    Attributes:
        clear: SASL in the clear, but for SCRAM-SHA-512, which is not known there.
        tls: SASL over TLS.
        mutual: TLS with certificates on both sides.
        certificates: those that it shows and wants.
        foreign: an authority that it has nothing to do with.
        folder: where files may be put.
        cluster: the broker, whose own door is open to all.
    """

    clear: str
    tls: str
    mutual: str
    certificates: Certificates
    foreign: Certificates
    folder: Path
    cluster: KafkaCluster


def _listeners(broker: Broker, ports: Mapping[str, int], certificates: Certificates) -> dict[str, object]:
    """Return a broker's settings for doors beside the lab's own."""
    own = {name: f"{name}://127.0.0.1:{port}" for name, port in {**broker.ports, **ports}.items()}
    found: dict[str, object] = {
        "listeners": ",".join(own.values()),
        "advertised.listeners": ",".join(own[name] for name in ("CLIENT", "INTERNAL", *ports)),
        "listener.security.protocol.map": "CLIENT:PLAINTEXT,INTERNAL:PLAINTEXT,CONTROLLER:PLAINTEXT,"
        "CLEAR:SASL_PLAINTEXT,TLS:SASL_SSL,MUTUAL:SSL",
        "listener.name.clear.sasl.enabled.mechanisms": ",".join(MECHANISMS[:2]),
        "listener.name.tls.sasl.enabled.mechanisms": ",".join(MECHANISMS),
    }
    for name in ("tls", "mutual"):
        security = Security(certificates=certificates, client_certificates=name == "mutual")
        found |= security.broker_properties(name)
    for name in ("clear", "tls"):
        for mechanism in MECHANISMS:
            found[f"listener.name.{name}.{mechanism.lower()}.sasl.jaas.config"] = login(mechanism, {USER: PASSWORD})
    return found


@pytest.fixture(scope="session")
def _secured_broker() -> Iterator[Listeners]:
    with tempfile.TemporaryDirectory(prefix="qmp-") as path, asyncio.Runner() as runner:
        folder = Path(path)
        ours, foreign = Certificates.make(folder / "ours"), Certificates.make(folder / "foreign")
        cluster = KafkaCluster(folder / "kafka")
        (broker,) = cluster.brokers
        ports = {name: free_port() for name in ("CLEAR", "TLS", "MUTUAL")}
        cluster._properties |= _listeners(broker, ports, ours)
        runner.run(cluster.start())
        try:
            clear, tls, mutual = (f"127.0.0.1:{port}" for port in ports.values())
            yield Listeners(clear, tls, mutual, ours, foreign, folder, cluster)
        finally:
            runner.run(cluster.stop())


@pytest.fixture(scope="session")
def kafka(_secured_broker: Listeners) -> KafkaCluster:
    """One broker for all tests of this folder, whichever loop they run on."""
    return _secured_broker.cluster


@pytest.fixture(scope="session")
def listeners(_secured_broker: Listeners) -> Listeners:
    """The same broker's doors that are not open to all."""
    _add_user(_secured_broker.cluster.brokers[0].internal)
    return _secured_broker


def _add_user(broker: str) -> None:
    """Tell the broker of the user, once for each mechanism, which takes a Java and a second or two each."""
    commands = [adding(kafka_home(), broker, name, USER, PASSWORD) for name in MECHANISMS[1:]]
    running = [subprocess.Popen(one, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) for one in commands]
    assert [process.wait(30) for process in running] == [0, 0]
