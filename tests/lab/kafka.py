"""Runs a real Kafka cluster on this machine. Its brokers can be killed, paused and started again."""

import asyncio
import base64
import contextlib
import signal
import subprocess
import sys
import tempfile
import uuid
from collections.abc import AsyncIterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, Self

from aiokafka.admin import AIOKafkaAdminClient, NewTopic
from aiokafka.errors import NoError, TopicAlreadyExistsError

from agent.cli.demo.images import MissingDependencyError
from tests.lab.kafka_home import java_command, kafka_home, warm
from tests.lab.kafka_security import Security
from tests.lab.machine import free_port
from tests.lab.waiting import until

_START_SECONDS: Final = 900.0
_STOP_SECONDS: Final = 180.0
_STARTED: Final = b"Kafka Server started"


class BrokerError(Exception):
    """A broker did not start. The message has the end of the broker's log."""


class Broker:
    """A Kafka broker that is also a controller of the cluster. It keeps its ports and its data across restarts.

    Attributes:
        identity: the node id, from 1.
        address: the address of the listener for clients, `127.0.0.1:port`.
        process: the process; None while the broker does not run.
    """

    def __init__(self, folder: Path, identity: int, java_options: Sequence[str] = ()) -> None:
        self.identity = identity
        self.folder = folder
        self.ports = {name: free_port() for name in ("CLIENT", "INTERNAL", "CONTROLLER")}
        self.address = f"127.0.0.1:{self.ports['CLIENT']}"
        self.internal = f"127.0.0.1:{self.ports['INTERNAL']}"
        self.controller = f"{identity}@127.0.0.1:{self.ports['CONTROLLER']}"
        self.process: subprocess.Popen[bytes] | None = None
        self._java_options = java_options
        self._log = folder / "log"
        self._properties = folder / "server.properties"

    def format_storage(self, cluster: str, properties: Mapping[str, object]) -> None:
        """Write the broker's properties and format its data directory. Kafka's own tool for this would start a slow Java process."""
        data = self.folder / "data"
        data.mkdir(parents=True)
        settings = {**properties, "node.id": self.identity, "log.dirs": data}
        self._properties.write_text("".join(f"{name}={value}\n" for name, value in settings.items()))
        (data / "meta.properties").write_text(
            f"version=1\ncluster.id={cluster}\nnode.id={self.identity}\ndirectory.id={_new_cluster_id()}\n"
        )

    async def start(self) -> None:
        """Start the broker, and wait until it answers clients. In a cluster, a majority of the brokers must have started.

        Raises:
            BrokerError: the broker does not start in time.
        """
        assert self.process is None, "the broker is already running"
        with self._log.open("ab") as log:
            begin = log.tell()
            # Not an asyncio process: a broker outlives the event loop of one test.
            self.process = subprocess.Popen(  # noqa: ASYNC220 - the fork takes no time
                [*java_command(kafka_home()), *self._java_options, "kafka.Kafka", str(self._properties)],
                stdout=log,
                stderr=log,
            )

        def settled() -> bool:
            assert self.process is not None
            return self.process.poll() is not None or _STARTED in self._log_since(begin)

        try:
            await until(settled, _START_SECONDS)
        finally:
            if _STARTED not in self._log_since(begin):
                await self.kill()
        if self.process is None:
            raise BrokerError(f"broker {self.identity} did not start: {self._log_since(begin)[-2000:].decode()}")

    async def stop(self) -> None:
        """Stop the broker with SIGTERM. Kill the broker if it does not end in time."""
        if self.process is not None:
            self.resume()
            self.process.terminate()
            with contextlib.suppress(TimeoutError):
                await until(self._has_ended, _STOP_SECONDS)
            await self.kill()

    async def kill(self) -> None:
        """Kill the broker with SIGKILL."""
        if self.process is not None:
            self.process.kill()
            await until(self._has_ended, _STOP_SECONDS)
            self.process = None

    async def pause(self) -> None:
        """Stop all threads of the broker with SIGSTOP, and wait for that. Connections stay open, and requests get no response."""
        if self.process is not None:
            self.process.send_signal(signal.SIGSTOP)
            threads = Path(f"/proc/{self.process.pid}/task")
            await until(lambda: all(map(_is_stopped, threads.iterdir())))

    def resume(self) -> None:
        """Continue the broker with SIGCONT."""
        if self.process is not None:
            self.process.send_signal(signal.SIGCONT)

    def _has_ended(self) -> bool:
        return self.process is None or self.process.poll() is not None

    def _log_since(self, begin: int) -> bytes:
        with self._log.open("rb") as log:
            log.seek(begin)
            return log.read()


class KafkaCluster:
    """A cluster of one or more brokers. As an async context manager, it runs while the `with` block runs.

    Attributes:
        brokers: the brokers, in the order of `bootstrap`.
        bootstrap: `host:port` of each broker's client listener.
    """

    def __init__(
        self,
        folder: Path,
        brokers: int = 1,
        *,
        security: Security | None = None,
        properties: Mapping[str, object] | None = None,
        java_options: Sequence[str] = (),
    ) -> None:
        """Choose the ports.

        Args:
            folder: directory for logs and data; it must not exist, or be empty.
            brokers: number of brokers. A cluster of three works while one broker is down.
            security: TLS and authentication of the client listeners; None for plain text without authentication.
            properties: additional broker properties, such as `auto.create.topics.enable`.
            java_options: additional options of the brokers' Java, such as `-Dname=value`.
        """
        self.security = security or Security()
        self.brokers = [Broker(folder / f"broker{number}", number, java_options) for number in range(1, brokers + 1)]
        self.bootstrap = [broker.address for broker in self.brokers]
        self._properties = dict(properties or {})

    @property
    def client(self) -> dict[str, Any]:
        """Keyword arguments for an aiokafka client that connects as the first user."""
        return {"bootstrap_servers": self.bootstrap, **self.security.client()}

    async def start(self) -> None:
        """Start all brokers at once, and wait until they answer clients.

        Raises:
            BrokerError: a broker does not start in time.
            MissingDependencyError: Java or Maven is missing.
        """
        cluster = _new_cluster_id()
        await asyncio.to_thread(_warm_up)
        for broker in self.brokers:
            broker.format_storage(cluster, server_properties(broker, self.brokers, self.security) | self._properties)
        try:
            async with asyncio.TaskGroup() as tasks:
                for broker in self.brokers:
                    tasks.create_task(broker.start())
            await asyncio.to_thread(self.security.add_users, kafka_home(), self.brokers[0].internal)
        except BaseException:
            await self.stop()
            raise

    async def stop(self) -> None:
        """Stop all brokers. If there are several brokers, kill them, because a broker cannot stop cleanly while all others stop."""
        async with asyncio.TaskGroup() as tasks:
            for broker in self.brokers:
                tasks.create_task(broker.stop() if len(self.brokers) == 1 else broker.kill())

    async def create_topic(
        self, name: str, *, partitions: int = 1, replication: int = 1, config: Mapping[str, str] | None = None
    ) -> None:
        """Create a topic and wait until each of its partitions has a leader and all its replicas.

        Raises:
            TimeoutError: the topic cannot be created, or a partition has no leader or not all replicas, in time.
        """
        async with self._admin() as admin:
            topic = NewTopic(name, partitions, replication, topic_configs=dict(config or {}))

            async def created() -> bool:
                """Create the topic. On a busy machine, heartbeats may be late, so that the cluster lacks a broker or a controller."""
                await admin._client.force_metadata_update()
                if admin._client.cluster.controller is None:
                    return False
                ((_, error, *_),) = (await admin.create_topics([topic])).topic_errors
                return error in (NoError.errno, TopicAlreadyExistsError.errno)

            await until(created, _START_SECONDS)

            async def complete() -> bool:
                (description,) = await admin.describe_topics([name])
                created = description["partitions"]
                return len(created) == partitions and all(
                    partition["leader"] >= 0 and len(partition["isr"]) == replication for partition in created
                )

            await until(complete, _START_SECONDS)

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.stop()

    @contextlib.asynccontextmanager
    async def _admin(self) -> AsyncIterator[AIOKafkaAdminClient]:
        running = [broker.internal for broker in self.brokers if broker.process is not None]
        admin = AIOKafkaAdminClient(bootstrap_servers=running)
        await admin.start()
        try:
            yield admin
        finally:
            await admin.close()


def server_properties(broker: Broker, brokers: list[Broker], security: Security) -> dict[str, object]:
    """Return a broker's properties that differ from Kafka's defaults, without the data directory. They favour speed over durability."""
    copied_fields = min(3, len(brokers))
    addresses = {name: f"{name}://127.0.0.1:{port}" for name, port in broker.ports.items()}
    return {
        "process.roles": "broker,controller",
        "controller.quorum.voters": ",".join(other.controller for other in brokers),
        "controller.listener.names": "CONTROLLER",
        "inter.broker.listener.name": "INTERNAL",
        "listeners": ",".join(addresses.values()),
        "advertised.listeners": f"{addresses['CLIENT']},{addresses['INTERNAL']}",
        "listener.security.protocol.map": f"CLIENT:{security.protocol},INTERNAL:PLAINTEXT,CONTROLLER:PLAINTEXT",
        **security.broker_properties("client"),
        "auto.create.topics.enable": "false",
        "group.initial.rebalance.delay.ms": 0,
        "offsets.topic.num.partitions": 1,
        "offsets.topic.replication.factor": copied_fields,
        "transaction.state.log.num.partitions": 1,
        "transaction.state.log.replication.factor": copied_fields,
        "transaction.state.log.min.isr": max(1, copied_fields - 1),
        # Detect a dead broker after two seconds, not nine. A killed broker cannot come back earlier.
        "broker.heartbeat.interval.ms": 250,
        "broker.session.timeout.ms": 2000,
        "controller.quorum.election.timeout.ms": 500,
        "controller.quorum.fetch.timeout.ms": 1000,
        "log.cleaner.dedupe.buffer.size": 4 << 20,  # half of the heap by default
        "initial.broker.registration.timeout.ms": 1000 * int(_START_SECONDS),
        "num.io.threads": 2,
        "num.network.threads": 2,
    }


def _warm_up() -> None:
    """Make the archive of Java classes with a temporary broker, if this machine has no archive yet."""
    home = kafka_home()
    with tempfile.TemporaryDirectory(prefix="qmp-kafka-") as folder:
        broker = Broker(Path(folder), 1)
        broker.format_storage(_new_cluster_id(), server_properties(broker, [broker], Security()))
        warm(home, broker._properties)


def _new_cluster_id() -> str:
    """Return a new cluster id in Kafka's format. It does not begin with a dash, which Kafka's tools would take for an option."""
    return base64.urlsafe_b64encode(uuid.uuid4().bytes).decode().rstrip("=").replace("-", "A")


if __name__ == "__main__":
    try:
        _warm_up()
    except MissingDependencyError as missing:
        sys.exit(str(missing))


def _is_stopped(thread: Path) -> bool:
    """Return whether a thread is stopped, or has ended meanwhile."""
    try:
        return (thread / "stat").read_text().rpartition(")")[2].split()[0] == "T"
    except OSError:
        return True
