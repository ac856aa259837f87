"""Monitors that the agent shares with another client, such as Proxmox's tools: the agent connects for each poll and disconnects.

A QMP socket serves one client at a time, and two more clients can wait in its backlog. So each poll has its own short connection: connect,
send all commands in one write, read the replies, disconnect. The greeting and the replies each have a timeout. The agent misses most
events, because QEMU sends events only to a connected client.
"""

import asyncio
import contextlib
import time
from collections.abc import Sequence

from agent.common.backoff import retry_delay
from agent.monitors.base import ConnectionOpener, EventCallback, Monitor, MonitorConnection, MonitorPriority
from agent.monitors.dial import SCAN_INTERVAL_SECONDS, DialDiscoverer
from agent.qmp.client import CommandResult, Connect, QmpClient
from agent.qmp.commands import AllowList, Command
from agent.qmp.errors import MonitorBusyError, NotConnectedError, PreemptedError, ProtocolError, QmpError, StalledError
from agent.qmp.protocol import Greeting, SkippedQmpMessages

DEFAULT_TIMEOUT_SECONDS = 0.5
"""Default timeout of the greeting, and of the replies, in seconds. Proxmox's tools wait in the backlog while the agent is connected.

Proxmox's statistics wait at most 3 s, and most of Proxmox's commands wait at most 5 s (qemu-server 9.2).
"""

FIRST_RETRY_SECONDS = 0.05
MAX_RETRY_SECONDS = 10.0
"""Maximum seconds between two attempts to connect, while another client holds the monitor or QEMU does not answer."""

QUERY_UUID = Command("query-uuid")


class DialPerPollDiscoverer(DialDiscoverer):
    """Finds monitors like `DialDiscoverer`, but connects to them only for each poll."""

    def __init__(
        self, pattern: str, timeout: float = DEFAULT_TIMEOUT_SECONDS, scan_seconds: float = SCAN_INTERVAL_SECONDS
    ) -> None:
        """Create a discoverer.

        Args:
            pattern: a path, a glob pattern or a TCP address, as for `DialDiscoverer`.
            timeout: seconds to wait for the greeting, and again for the replies.
            scan_seconds: seconds between two scans of the file system.
        """
        super().__init__(pattern, scan_seconds)
        self._timeout = timeout

    def __repr__(self) -> str:
        return f"dial_per_poll {self.pattern} {self._timeout:g}"

    def make_monitor(self, name: str, key: tuple[object, ...], connect: Connect) -> Monitor:
        """Return the monitor at an address; `key` identifies its socket."""
        return Monitor(
            name,
            ("dial_per_poll", self._timeout, *key),
            dial_per_poll_opener(connect, self._timeout),
            MonitorPriority.SHARED,
        )


def dial_per_poll_opener(connect: Connect, timeout: float) -> ConnectionOpener:
    """Return an opener of `DialPerPollConnection`, which is connected only while commands are executed.

    Args:
        connect: opens a transport to the socket.
        timeout: seconds to wait for the greeting, and again for the replies.
    """

    async def open_connection(allow: AllowList, on_event: EventCallback, *, deadline: float) -> MonitorConnection:
        connection = DialPerPollConnection(connect, timeout, allow, on_event)
        await connection.execute((), deadline=deadline)
        return connection

    return open_connection


class DialPerPollConnection:
    """A `MonitorConnection` that connects to the socket for each `execute` and disconnects afterwards.

    `ended_future` completes when the socket refuses the agent, or when another process listens on the socket. Over TCP, the listening
    process is unknown. So each `execute` over TCP also queries the VM's UUID, and `ended_future` completes when the UUID changes.
    """

    can_probe = False
    receives_events = False

    def __init__(self, connect: Connect, timeout: float, allow: AllowList, on_event: EventCallback) -> None:
        self.greeting: Greeting | None = None
        self.ended_future: asyncio.Future[QmpError] = asyncio.get_running_loop().create_future()
        self.peer_pid: int | None = None
        self.skipped_invalid_message_counts = SkippedQmpMessages()
        self._connect = connect
        self._timeout = timeout
        self._allow = allow
        self._on_event = on_event
        self._client: QmpClient | None = None
        self._uuid: str | None = None

    async def execute(self, commands: Sequence[Command], *, deadline: float) -> list[CommandResult]:
        """Connect, execute the commands, disconnect, and return the results in order. Retry a busy monitor with growing delays.

        Raises:
            MonitorBusyError: QEMU sent no greeting within `deadline` seconds. `wait_idle` retries without a deadline.
            StalledError: QEMU sent its greeting, but the replies did not arrive within the timeout.
            NotConnectedError: the connection has ended.
            ProtocolError: the peer does not speak QMP, and the connection has ended.
            CommandNotAllowedError: a command is not on the allow-list.
        """
        until, attempt = time.monotonic() + deadline, 0
        while True:
            try:
                return await self._connect_and_execute(commands)
            except MonitorBusyError:
                wait = retry_delay(attempt, FIRST_RETRY_SECONDS, MAX_RETRY_SECONDS)
                if time.monotonic() + wait > until:
                    raise
            attempt += 1
            await self._wait_to_retry(wait)

    async def wait_idle(self) -> None:
        """Connect and disconnect repeatedly, with growing delays, until QEMU answers.

        Raises:
            QmpError: the agent gave up the monitor before QEMU answered, for example because another VM's QEMU listens there now.
        """
        attempt = 0
        while True:
            with contextlib.suppress(MonitorBusyError, StalledError):
                await self._connect_and_execute(())
                return
            await self._wait_to_retry(retry_delay(attempt, FIRST_RETRY_SECONDS, MAX_RETRY_SECONDS))
            attempt += 1

    async def probe_out_of_band(self, *, deadline: float) -> bool:  # noqa: ARG002 - MonitorConnection's signature
        """Return False, because between two polls no connection exists for an out-of-band command."""
        return False

    def close(self) -> None:
        """End the connection now."""
        self._end_connection(NotConnectedError("closed by the agent"))

    def close_for_preferred_monitor(self) -> None:
        """End the connection now, because a monitor of better priority leads to the same VM."""
        self._end_connection(PreemptedError("a preferred monitor of this VM is available"))

    async def _connect_and_execute(self, commands: Sequence[Command]) -> list[CommandResult]:
        """Connect, execute commands and disconnect.

        Raises:
            MonitorBusyError: no greeting arrived in time.
            StalledError: the replies did not arrive in time.
            NotConnectedError: the connection has ended.
            ProtocolError: the peer does not speak QMP, and the connection has ended.
        """
        try:
            client = await QmpClient.open(self._connect, self._allow, self._on_event, deadline=self._timeout)
            with contextlib.closing(client):
                self._check_peer(client)
                try:
                    if client.peer_pid is None:
                        uuid, *results = await client.execute((QUERY_UUID, *commands), deadline=self._timeout)
                        self._check_uuid(uuid)
                        return results
                    return await client.execute(commands, deadline=self._timeout) if commands else []
                finally:
                    if any(client.skipped_invalid_message_counts):
                        counts = zip(
                            self.skipped_invalid_message_counts, client.skipped_invalid_message_counts, strict=True
                        )
                        self.skipped_invalid_message_counts = SkippedQmpMessages(*map(sum, counts))
        except MonitorBusyError:
            raise
        except (NotConnectedError, ProtocolError) as error:
            self._end_connection(error)
            raise self.ended_future.result() from error
        finally:
            self._client = None

    def _check_peer(self, client: QmpClient) -> None:
        """At the first poll, store the peer's process. At later polls, compare the peer's process with the stored process.

        Raises:
            NotConnectedError: another process listens on the socket now, or the connection has ended.
        """
        if self.ended_future.done():
            raise self.ended_future.result()
        if self.greeting is not None and self.peer_pid != client.peer_pid:
            raise NotConnectedError("another process listens on the monitor's socket now")
        self.greeting, self.peer_pid, self._client = client.greeting, client.peer_pid, client

    def _check_uuid(self, result: CommandResult) -> None:
        """At the first poll, store the VM's UUID. At later polls, compare the UUID with the stored UUID. Ignore a reply without a UUID.

        Raises:
            NotConnectedError: another VM listens at the address now.
        """
        uuid = result.get("UUID") if isinstance(result, dict) else None
        if not isinstance(uuid, str):
            return
        if self._uuid not in (None, uuid):
            raise NotConnectedError("another VM listens at the monitor's address now")
        self._uuid = uuid

    async def _wait_to_retry(self, seconds: float) -> None:
        """Wait for a number of seconds.

        Raises:
            QmpError: the connection ended during the wait.
        """
        await asyncio.wait({self.ended_future}, timeout=seconds)
        if self.ended_future.done():
            raise self.ended_future.result()

    def _end_connection(self, cause: QmpError) -> None:
        if not self.ended_future.done():
            self.ended_future.set_result(cause)
        if self._client is not None:
            self._client.close()
