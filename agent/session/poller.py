"""Polling of one VM: sends the commands of due collectors to QEMU, reads the kernel's files, and reports samples from the answers."""

import logging
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice
from math import inf
from typing import NamedTuple, Self

from agent.collectors import Collector, Facts
from agent.collectors.base import Poll
from agent.model.family import Sample
from agent.model.metrics.migration import MIGRATION_ENDED
from agent.model.record import Record, Vm
from agent.qmp.client import CommandResult
from agent.qmp.errors import BusyError, CommandError, ProtocolError, QmpError, StalledError
from agent.qmp.protocol import Event
from agent.session.api import PollOutcome, SessionContext, SessionObserver, VmChange
from agent.session.collector_failures import CollectorFailures
from agent.session.command_executor import CommandExecutor
from agent.session.host_process import HostProcess
from agent.session.migration_state import MigrationState
from agent.session.scheduler import SLACK_SECONDS, Batch, Schedule, next_poll_time, split_batch

_log = logging.getLogger(__name__)

MAX_SAMPLES = 4096
"""Maximum number of samples from one answer. One message has room for a million samples; their records would delay all other VMs."""


class PollTime(NamedTuple):
    """The instant before a poll.

    Attributes:
        time_ns: nanoseconds since the epoch.
        monotonic: seconds on the monotonic clock.
    """

    time_ns: int
    monotonic: float

    @classmethod
    def now(cls) -> Self:
        """Read both clocks."""
        return cls(time.time_ns(), time.monotonic())


class Poller:
    """Polls one attached VM.

    Attributes:
        facts: known facts about the VM, such as its threads and features.
        phase: the VM's position in the polling interval, 0 to 1; spreads the polls of many VMs.
    """

    def __init__(
        self,
        context: SessionContext,
        observer: SessionObserver,
        executor: CommandExecutor,
        schedule: Schedule,
        process: HostProcess,
        vm: Vm,
        migration: MigrationState,
        failures: CollectorFailures,
        on_degraded: Callable[[], None],
    ) -> None:
        """Create a poller of an attached VM.

        Args:
            context: state shared with the other sessions.
            observer: receives samples, transitions and figures about polls.
            executor: executes commands.
            schedule: the due times of the collectors.
            process: the VM's process.
            vm: the VM.
            migration: migration state of the VM's process.
            failures: failing collectors of the VM, over all its connections.
            on_degraded: called when `failures` changes.
        """
        self.facts = Facts()
        self.phase = context.random()
        self._context = context
        self._observer = observer
        self._executor = executor
        self._schedule = schedule
        self._process = process
        self._vm = vm
        self._migration = migration
        self._failures = failures
        self._on_degraded = on_degraded
        self._collectors = context.collectors
        self._jitter = 1.0
        self._phased: list[str] = []
        self._unsupported: list[str] = []  # a set of so few is six times as large
        self._topologies: dict[str, object] = {}
        self._previous: dict[str, Poll] = {}

    def plan_all(self, now: float) -> None:
        """Make all supported collectors due now."""
        for name, collector in self._collectors.by_name.items():
            if name in self._unsupported:
                continue
            if collector.missing_command(self.facts):
                self._disable(name)
                self._observer.on_collector_run(name, PollOutcome.UNSUPPORTED)
            else:
                self._schedule.plan(name, now)

    def read_event(self, event: Event, time_ns: int) -> None:
        """Report the samples in the data of an event."""
        collector = self._collectors.by_event.get(event.name)
        if collector is not None:
            samples = tuple(collector.from_event[event.name](event.data))
            self._observer.on_samples(self._vm, collector.families, samples, min(time_ns, time.time_ns()))

    async def poll(self, names: Iterable[str]) -> bool:
        """Poll QEMU for these collectors; return False if it stalled meanwhile.

        Raises:
            QmpError: the connection ended.
        """
        if not self.facts.receives_events:
            # Another client may use the monitor at the same interval. The jitter avoids a collision at each poll.
            self._jitter = 0.9 + 0.2 * self._context.random()
        for batch in self._batches(names):
            when = PollTime.now()
            try:
                answers = await self._executor.execute([command for _, commands in batch for command in commands])
            except (BusyError, StalledError) as error:
                self._observer.on_response(self._context.settings.response_seconds)
                for collector, _ in batch:
                    self._observer.on_collector_run(collector.name, PollOutcome.TIMEOUT)
                await self._executor.wait_until_responsive(error)
                return False  # the late answers are out of date, and much may have changed
            except ProtocolError as error:
                for collector, _ in batch:
                    self._fail(collector.name, str(error))
                raise
            self._observer.on_response(time.monotonic() - when.monotonic)
            for reason, messages in self._executor.take_skipped_messages().items():
                self._observer.on_messages_skipped(self._vm, reason, messages)
            for collector, commands in batch:
                own, answers = answers[: len(commands)], answers[len(commands) :]
                self._handle_answers(collector, own, when)
        return True

    def _batches(self, names: Iterable[str]) -> Iterator[Batch[Collector]]:
        """Yield batches of collectors and their commands that fit one write. A failing collector has a batch of its own."""
        rest: Batch[Collector] = []
        retries: Batch[Collector] = []
        for name in names:
            collector = self._collectors.by_name.get(name)
            if collector is None or collector.host_only:
                continue
            commands = collector.commands(self.facts)
            if not commands:  # the VM has nothing to query any more, such as a balloon
                self._clear_failure(name)
            elif not self._is_off(name):
                (retries if name in self._failures else rest).append((collector, commands))
        while rest:
            batch, rest = split_batch(rest)
            yield batch
        yield from ([retry] for retry in retries)

    def poll_host(self, names: Iterable[str] | None = None) -> None:
        """Poll these collectors by reading the kernel's files. A file takes microseconds, and QEMU is not involved.

        A collector without files reports that its subjects no longer exist.

        Args:
            names: names of collectors; collectors that need QEMU are ignored. None polls all host-only collectors.
        """
        host_only = self._collectors.host_only
        for name in host_only if names is None else names:
            if name not in host_only or self._is_off(name):
                continue
            collector, when = self._collectors.by_name[name], PollTime.now()
            if files := collector.files(self.facts):
                self._handle_answers(collector, self._process.read(files), when)
            else:
                self._clear_failure(name)
                self._observer.on_samples(self._vm, collector.families, (), when.time_ns)

    def plan_host_collectors(self) -> None:
        """Make the host-only collectors due now. A stall may have prevented a poll for which they were taken from the schedule."""
        for name in self._collectors.host_only:
            self._schedule.plan(name, time.monotonic())

    def poll_due_host_collectors(self) -> None:
        """Poll the host-only collectors that are due."""
        self.poll_host(self._schedule.take(time.monotonic(), self._collectors.host_only))

    def _is_off(self, name: str) -> bool:
        """Return whether a collector is off after a failure, and plan its retry."""
        retry_at = self._failures.retry_at(name)
        if retry_at == -inf or retry_at <= time.monotonic() + SLACK_SECONDS:
            return False
        self._schedule.plan(name, retry_at)
        return True

    def _fail(self, name: str, cause: str, *, bug: bool = False) -> None:
        """Switch a collector off for a time that grows with each failure."""
        settings = self._context.settings
        delay = self._failures.add(
            name, cause, time.monotonic(), 2 * settings.intervals.poll, settings.max_collector_off_seconds
        )
        _log.warning("%s: collector %s is off for %.0f s: %s", self._vm.name, name, delay, cause, exc_info=bug)
        self._on_degraded()

    def _clear_failure(self, name: str) -> None:
        """Poll a collector at its interval again, because its answers can be read."""
        if self._failures.clear(name):
            _log.info("%s: collector %s works again", self._vm.name, name)
            self._on_degraded()

    def _disable(self, name: str) -> None:
        """Stop polling a collector on this connection, because QEMU lacks its command. A running QEMU gets no new commands."""
        self._clear_failure(name)
        self._unsupported.append(name)
        self._schedule.drop(name)

    def _handle_answers(self, collector: Collector, answers: Sequence[CommandResult], when: PollTime) -> None:
        """Report the samples in the answers, and plan the collector's next poll."""
        samples, outcome = self._collect(collector, answers, when)
        self._observer.on_collector_run(collector.name, outcome)
        if outcome in (PollOutcome.OK, PollOutcome.TRUNCATED):
            self._observer.on_samples(self._vm, collector.families, samples, when.time_ns)
            for sample in samples:
                if (observed := self._migration.on_sample(sample)) is not None:
                    change = VmChange.MIGRATED_IN
                    self._observer.on_lifecycle(
                        change, Record(change.type, self._vm, {"observed": observed}, when.time_ns)
                    )
            self._compare_topology(collector, samples)
            self._clear_failure(collector.name)
        self._plan_next(collector, samples, when.monotonic)

    def _collect(
        self, collector: Collector, answers: Sequence[CommandResult], when: PollTime
    ) -> tuple[Sequence[Sample], PollOutcome]:
        if any(isinstance(a, CommandError) and a.error_class == "CommandNotFound" for a in answers):
            self._disable(collector.name)
            return (), PollOutcome.UNSUPPORTED
        try:
            previous = self._previous.get(collector.name, Poll())
            collected = iter(collector.collect(answers))
            poll = Poll(tuple(islice(collected, MAX_SAMPLES)), *when)
            truncated = next(collected, None) is not None
            if (samples := collector.derive(previous, poll)) is not poll.samples:
                poll = Poll(tuple(samples), *when)
            if collector.needs_previous:
                self._previous[collector.name] = poll
            for transition in collector.transitions(previous, poll):
                record_type, values = f"qemu.{transition.family.name}", dict(transition.values)
                if transition.family is MIGRATION_ENDED and (role := self._migration.role) is not None:
                    values["role"] = role
                self._observer.on_transition(
                    Record(record_type, self._vm, values, time.time_ns(), severity=transition.severity)
                )
        except CommandError as error:
            _log.debug("%s: collector %s: QEMU refused: %s", self._vm.name, collector.name, error)
            self._clear_failure(collector.name)
        except QmpError as error:
            self._fail(collector.name, str(error))
        except Exception as error:  # noqa: BLE001 - a bug in one collector must not end the session
            self._fail(collector.name, f"{type(error).__name__}: {error}", bug=True)
        else:
            return poll.samples, PollOutcome.TRUNCATED if truncated else PollOutcome.OK
        return (), PollOutcome.ERROR

    def _compare_topology(self, collector: Collector, samples: Sequence[Sample]) -> None:
        """If the topology changed, poll the collectors whose last answers are out of date now."""
        if not collector.invalidates:
            return
        topology = collector.topology(samples)
        if self._topologies.setdefault(collector.name, topology) != topology:
            self._topologies[collector.name] = topology
            self._schedule.demand(collector.invalidates, time.monotonic())

    def _plan_next(self, collector: Collector, samples: Sequence[Sample], start: float) -> None:
        intervals, name = self._context.settings.intervals, collector.name
        delay = collector.next_poll_delay(samples, self.facts, intervals)
        if name in self._failures:
            self._schedule.plan(name, self._failures.retry_at(name))
            return
        if name in self._unsupported or delay is None:
            return
        interval = intervals.poll
        in_slot = delay >= interval and delay % interval == 0 and self.facts.receives_events
        if delay >= interval and name not in self._phased:
            self._phased.append(name)
            delay *= 0.1 + 0.9 * self.phase
        if not in_slot:
            self._schedule.plan(name, start + delay * self._jitter)
            return
        self._schedule.plan(name, next_poll_time(start, delay, interval, self.phase, self._context.attached_vms))
