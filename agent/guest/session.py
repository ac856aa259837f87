"""The session with one guest agent.

The session connects while the guest can reply, and queries the guest agent at intervals. The session retries with a growing delay
after a failure.

Each session has its own task. A session never waits for the VM's monitor, and the monitor's polls never wait for the session.
"""

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice
from typing import Any

from agent.collectors.guest import GUEST_COLLECTORS, GuestCollector, TimedGuestReply
from agent.common.backoff import retry_delay
from agent.guest.channels import SHARED_CHANNEL_TIMEOUT_SECONDS, ChannelOpener
from agent.guest.config import GuestAgentConfig
from agent.guest.schedule import GuestSchedule
from agent.guest.shared_types import GuestAgentState, GuestCommandOutcome, GuestObserver, GuestReachability
from agent.model.family import Family, Sample
from agent.model.metrics.guest import GUEST_AGENT_SESSION, GUEST_FREEZE
from agent.model.record import Vm, sanitize
from agent.qga.channel import GuestChannel
from agent.qga.commands import GUEST_READS
from agent.qga.errors import (
    GuestAgentCommandError,
    GuestAgentError,
    GuestChannelAccessDeniedError,
    GuestChannelBusyError,
    GuestTimeoutError,
    UnreadableGuestReplyError,
)

_log = logging.getLogger(__name__)

FIRST_RETRY_SECONDS = 10.0
STABLE_SECONDS = 60.0
"""How long a connection must work to reset the retry delay."""
GUEST_INFO_INTERVAL_SECONDS = 600.0
"""Time between two queries of guest-info. An update of the guest agent or its config can change the permitted commands."""

MAX_GUEST_SAMPLES = 256
MAX_REASON_LENGTH = 200
MAX_MISSING_COMMANDS = 32

GUEST_FAMILIES: tuple[Family, ...] = tuple(family for collector in GUEST_COLLECTORS for family in collector.families)
"""The families of all collectors. All values of these families are out of date after the connection to the guest agent is lost."""

_STATE_BY_ERROR: tuple[tuple[type[GuestAgentError], GuestAgentState], ...] = (
    (GuestChannelAccessDeniedError, GuestAgentState.DENIED),
    (GuestChannelBusyError, GuestAgentState.BUSY),
    (GuestAgentError, GuestAgentState.UNRESPONSIVE),
)
"""State of the session after an error, by the type of the error; the first matching entry decides."""

_OUTCOME_BY_ERROR: tuple[tuple[type[GuestAgentError], GuestCommandOutcome], ...] = (
    (GuestAgentCommandError, GuestCommandOutcome.ERROR),
    (GuestTimeoutError, GuestCommandOutcome.TIMEOUT),
    (UnreadableGuestReplyError, GuestCommandOutcome.UNREADABLE),
    (GuestAgentError, GuestCommandOutcome.LOST),
)
"""Outcome of a command that raised an error, by the type of the error; the first matching entry decides."""

_MISSING_COMMAND_ERROR = GuestAgentCommandError(
    "CommandNotFound", "the guest agent lacks the command, or the guest forbids it"
)


class GuestSession:
    """The session with one VM's guest agent.

    The owner of the session runs `run` as a task, and calls `on_reachability_changed` after each change of `reachability`.

    Attributes:
        reachability: whether and where the guest agent can be queried. The owner of the session changes this object.
    """

    def __init__(
        self,
        vm: Vm,
        config: GuestAgentConfig,
        opener: ChannelOpener,
        observer: GuestObserver,
        *,
        random_fraction: Callable[[], float],
        first_retry_seconds: float = FIRST_RETRY_SECONDS,
    ) -> None:
        """Create a session that is not connected.

        Args:
            vm: the VM.
            config: the config.
            opener: opens the channel.
            observer: receives samples and outcomes.
            random_fraction: returns a number from 0 to 1, to spread the queries of many VMs.
            first_retry_seconds: delay before the first retry.
        """
        self.reachability = GuestReachability()
        self._vm = vm
        self._config = config
        self._opener = opener
        self._observer = observer
        self._random_fraction = random_fraction
        self._first_retry_seconds = first_retry_seconds
        self._schedule = GuestSchedule(GUEST_COLLECTORS, config.intervals)
        self._reachability_changed = asyncio.Event()
        self._state: GuestAgentState | None = None
        self._reason = ""
        self._version = ""
        self._permitted: frozenset[str] = frozenset()
        self._info_due_at = 0.0
        self._frozen = False
        self._unreadable_collectors: set[str] = set()
        # Names of the collectors that have reported values since the last connection failure.
        self._reported_collectors: set[str] = set()

    def on_reachability_changed(self) -> None:
        """Handle a change of `reachability`."""
        self._reachability_changed.set()

    async def run(self) -> None:
        """Query the guest agent until cancelled."""
        failures = 0
        await self._wait_for_change(self._random_fraction() * self._first_retry_seconds)
        while True:
            await self._wait_until_no_obstacle()
            started = time.monotonic()
            try:
                await self._connect_and_query()
            except GuestAgentError as error:
                if self.reachability.obstacle() is None:
                    failures = failures + 1 if time.monotonic() - started < STABLE_SECONDS else 1
                    self._on_connection_failure(error)
                    await self._wait_unless_obstacle(
                        retry_delay(failures - 1, self._first_retry_seconds, self._config.max_retry_delay)
                    )
            else:
                failures = 0
                await self._wait_unless_obstacle(self._next_due_at() - time.monotonic())

    async def _wait_until_no_obstacle(self) -> None:
        """Wait until all obstacles to queries, such as a stopped guest, are gone."""
        while (obstacle := self.reachability.obstacle()) is not None:
            state, cause = obstacle
            if state is GuestAgentState.ABSENT:
                self._report_all_values_outdated()
                self._schedule.clear_failures_and_schedule_all()
                self._frozen = False
            self._set_state(state, cause)
            self._reachability_changed.clear()
            await self._reachability_changed.wait()

    async def _wait_unless_obstacle(self, seconds: float) -> None:
        """Wait for a number of seconds, or until an obstacle appears, such as a stopped guest."""
        until = time.monotonic() + seconds
        while self.reachability.obstacle() is None and (remaining := until - time.monotonic()) > 0:
            await self._wait_for_change(remaining)

    async def _wait_for_change(self, seconds: float) -> None:
        """Wait until the reachability changes, for at most `seconds`."""
        self._reachability_changed.clear()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(max(0.0, seconds)):
                await self._reachability_changed.wait()

    async def _connect_and_query(self) -> None:
        """Connect, and query until an obstacle appears. Disconnect from a shared channel after one round of queries.

        Raises:
            GuestAgentError: the channel cannot be opened, or the guest agent does not respond.
        """
        shared = self._opener.is_shared(self.reachability)
        if self._state is not GuestAgentState.UNRESPONSIVE and not (shared and self._state is GuestAgentState.UP):
            self._set_state(GuestAgentState.CONNECTING)
        with contextlib.closing(await self._opener.open(self.reachability)) as channel, self._mark_channel_in_use():
            channel.ended_future.add_done_callback(lambda _: self._reachability_changed.set())
            try:
                if not shared or self._state is not GuestAgentState.UP:
                    await self._read_guest_info(channel)
            except GuestTimeoutError:
                if self.reachability.client_connected:
                    raise GuestChannelBusyError(
                        "no reply, and another client was connected to the channel at the last poll"
                    ) from None
                raise
            while self.reachability.obstacle() is None:
                await self._run_due_collectors(channel)
                if channel.ended_future.done():
                    raise channel.ended_future.result()
                if shared and self._next_due_at() > time.monotonic():
                    return
                if self.reachability.obstacle() is None:
                    await self._wait_for_change(self._next_due_at() - time.monotonic())

    @contextlib.contextmanager
    def _mark_channel_in_use(self) -> Iterator[None]:
        self.reachability.agent_connected = True
        try:
            yield
        finally:
            self.reachability.agent_connected = False

    @property
    def _command_timeout(self) -> float:
        """Timeout of a command in seconds."""
        shared = self._opener.is_shared(self.reachability)
        return min(self._config.timeout, SHARED_CHANNEL_TIMEOUT_SECONDS) if shared else self._config.timeout

    def _next_due_at(self) -> float:
        return min(self._schedule.next_due_at(), self._info_due_at)

    async def _run_due_collectors(self, channel: GuestChannel) -> None:
        """Run the collectors that are due, one after the other."""
        if self._info_due_at <= time.monotonic():
            await self._read_guest_info(channel)
        for collector in self._schedule.due_collectors(time.monotonic()):
            if (
                self.reachability.obstacle() is not None
                or channel.ended_future.done()
                or self._info_due_at <= time.monotonic()
            ):
                return
            if self._frozen and not collector.while_frozen:
                self._schedule.on_success(collector.name, time.monotonic())
            else:
                await self._run_collector(collector, channel)

    async def _read_guest_info(self, channel: GuestChannel) -> None:
        """Read the guest agent's version and permitted commands. Few commands are permitted while the file systems are frozen."""
        info = await self._execute(channel, "guest-info")
        if isinstance(info, GuestAgentError):
            raise info
        version, permitted = parse_guest_info(info)
        self._version, self._permitted = version, permitted
        self._info_due_at = time.monotonic() + GUEST_INFO_INTERVAL_SECONDS
        # The list of permitted commands may be incomplete because the file systems are frozen.
        self._schedule.schedule_now("freeze", time.monotonic())
        self._set_state(GuestAgentState.UP)

    async def _run_collector(self, collector: GuestCollector, channel: GuestChannel) -> None:
        """Run one collector and schedule its next run.

        Raises:
            GuestAgentError: the guest agent does not respond.
        """
        name, start = collector.name, time.monotonic()
        if self._permitted.isdisjoint(collector.commands):
            self._report_values_outdated(collector)
            self._schedule.on_success(name, start)
            return
        try:
            exchanges = [await self._exchange_command(channel, command) for command in collector.commands]
            samples = tuple(islice(collector.collect(exchanges), MAX_GUEST_SAMPLES))
        except GuestAgentCommandError as error:
            await self._on_command_error(collector, channel, error)
            return
        except UnreadableGuestReplyError as error:
            level = logging.DEBUG if name in self._unreadable_collectors else logging.WARNING
            self._unreadable_collectors.add(name)
            self._on_collector_failure(collector, start, level, error)
            return
        except GuestTimeoutError:
            self._schedule.on_failure(name, start)
            raise
        except GuestAgentError:
            raise
        except Exception:  # noqa: BLE001 - a bug in one collector must not end the session
            _log.exception("%s: guest agent: collector %s failed: internal error", self._vm.name, name)
            self._report_values_outdated(collector)
            self._schedule.on_failure(name, start)
            return
        self._unreadable_collectors.discard(name)
        self._schedule.on_success(name, start)
        self._reported_collectors.add(name)
        self._report_samples(collector.families, samples, exchanges[0].sent_ns)

    async def _on_command_error(
        self, collector: GuestCollector, channel: GuestChannel, error: GuestAgentCommandError
    ) -> None:
        """Handle an error that the guest agent returned.

        Most commands return an error while the file systems are frozen. An error during a freeze is not a failure of the collector.

        Raises:
            GuestAgentError: the guest agent does not respond.
        """
        now = time.monotonic()
        freeze = next((each for each in self._schedule.enabled_collectors if each.while_frozen), None)
        if freeze is not None and freeze is not collector:
            await self._run_collector(freeze, channel)
        if self._frozen:
            self._schedule.on_success(collector.name, now)
        else:
            self._on_collector_failure(collector, now, logging.DEBUG, error)

    def _on_collector_failure(self, collector: GuestCollector, now: float, level: int, error: GuestAgentError) -> None:
        """Handle a failure that concerns only one collector. The collector's last values are out of date."""
        reason = sanitize(str(error), MAX_REASON_LENGTH)
        _log.log(level, "%s: guest agent: collector %s failed: %s", self._vm.name, collector.name, reason)
        self._report_values_outdated(collector)
        self._schedule.on_failure(collector.name, now)

    def _report_values_outdated(self, collector: GuestCollector) -> None:
        """Report that the last values of a collector, if any, are out of date."""
        if collector.name in self._reported_collectors:
            self._reported_collectors.discard(collector.name)
            self._observer.on_guest_samples_outdated(self._vm, collector.families, time.time_ns())

    def _report_samples(self, families: Sequence[Family], samples: Sequence[Sample], time_ns: int) -> None:
        self._observer.on_guest_samples(self._vm, families, samples, time_ns)
        if GUEST_FREEZE in families:
            before, self._frozen = self._frozen, any(sample.values["frozen"] for sample in samples)
            if before and not self._frozen:
                self._info_due_at = 0.0  # the permitted commands have changed, so read them again
                self._schedule.schedule_all_now()

    async def _exchange_command(self, channel: GuestChannel, command: str) -> TimedGuestReply:
        """Execute one command. Return the reply, or the error that the guest agent returned, with the times of both messages.

        Raises:
            GuestAgentError: there is no readable reply.
        """
        if command not in self._permitted:
            return TimedGuestReply(_MISSING_COMMAND_ERROR, time.time_ns(), time.time_ns())
        sent_ns = time.time_ns()
        value = await self._execute(channel, command)
        return TimedGuestReply(value, sent_ns, time.time_ns())

    async def _execute(self, channel: GuestChannel, command: str) -> Any:
        """Return the result of a command, or the error that the guest agent returned for the command."""
        try:
            value = await channel.execute(command, deadline=self._command_timeout)
        except GuestAgentError as error:
            self._observer.on_guest_command(command, _find_by_error(_OUTCOME_BY_ERROR, error))
            if isinstance(error, GuestAgentCommandError):
                return error
            raise
        self._observer.on_guest_command(command, GuestCommandOutcome.OK)
        return value

    def _on_connection_failure(self, error: GuestAgentError) -> None:
        self._report_all_values_outdated()
        self._set_state(_find_by_error(_STATE_BY_ERROR, error), sanitize(str(error), MAX_REASON_LENGTH))

    def _report_all_values_outdated(self) -> None:
        """Report that all reported values are out of date, and make all collectors due. Do nothing if no values were reported."""
        if self._reported_collectors:
            self._reported_collectors.clear()
            self._observer.on_guest_samples_outdated(self._vm, GUEST_FAMILIES, time.time_ns())
            self._schedule.schedule_all_now()

    def _set_state(self, state: GuestAgentState, reason: str = "") -> None:
        """Set and report the state."""
        if state is not self._state or reason != self._reason:
            level = logging.INFO if state is not GuestAgentState.CONNECTING else logging.DEBUG
            _log.log(level, "%s: guest agent: %s%s", self._vm.name, state.value, f": {reason}" if reason else "")
        self._state, self._reason = state, reason
        values: dict[str, Any] = {"state": state.value}
        if reason:
            values["reason"] = reason
        if state is GuestAgentState.UP:
            values["version"] = self._version
            values["missing_commands"] = missing_commands(self._schedule.enabled_collectors, self._permitted)
        sample = Sample(GUEST_AGENT_SESSION, (), values)
        self._observer.on_guest_samples(self._vm, (GUEST_AGENT_SESSION,), (sample,), time.time_ns())


def parse_guest_info(reply: Any) -> tuple[str, frozenset[str]]:
    """Return the version, and the permitted commands that are on the allow-list, from the reply to guest-info.

    Raises:
        UnreadableGuestReplyError: the version or the list of commands is missing or malformed.
    """
    match reply:
        case {"version": str(version), "supported_commands": list(commands)}:
            names = (
                command.get("name")
                for command in commands
                if isinstance(command, dict) and command.get("enabled") is True
            )
            return sanitize(version, 64), frozenset(
                name for name in names if isinstance(name, str) and name in GUEST_READS
            )
    raise UnreadableGuestReplyError("the reply to guest-info lacks the version or the list of commands")


def missing_commands(collectors: Iterable[GuestCollector], permitted: frozenset[str]) -> list[str]:
    """Return the commands that the collectors need but the guest agent does not permit."""
    return sorted({command for collector in collectors for command in collector.commands} - permitted)[
        :MAX_MISSING_COMMANDS
    ]


def _find_by_error(table: Iterable[tuple[type[GuestAgentError], Any]], error: GuestAgentError) -> Any:
    return next(value for error_type, value in table if isinstance(error, error_type))
