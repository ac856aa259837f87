"""Polling of one VM: sends the commands of the due collectors to QEMU, reads the kernel's files, and reports the samples."""

import logging
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice
from math import inf
from typing import NamedTuple, Self

from agent.collectors import Collector, VmFacts
from agent.collectors.base import MAX_SAMPLES, Poll
from agent.model.family import Sample
from agent.model.metrics.migration import MIGRATION_ENDED
from agent.model.record import Record, Vm
from agent.qmp.client import CommandResult
from agent.qmp.errors import BusyError, CommandError, ProtocolError, QmpError, StalledError, UnclearReplyError
from agent.qmp.protocol import Event
from agent.session.api import PollOutcome, SessionContext, SessionObserver, VmChange
from agent.session.collector_failures import CollectorFailures
from agent.session.command_executor import CommandExecutor
from agent.session.host_process import HostProcess
from agent.session.migration_state import MigrationState
from agent.session.scheduler import SLACK_SECONDS, Batch, Schedule, next_poll_time, split_batch

_log = logging.getLogger(__name__)


class PollTime(NamedTuple):
    """When a poll began.

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
        phase: random position of the VM's polls in the polling interval, 0 to 1. It spreads the polls of many VMs over time.
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
            context: state that all sessions share.
            observer: receives the samples, the transitions and the outcome of each poll.
            executor: executes commands.
            schedule: when each collector is due.
            process: the VM's process on this host.
            vm: the VM.
            migration: migration state of the VM's process.
            failures: the VM's failing collectors; kept when the VM is attached again.
            on_degraded: called when `failures` changes.
        """
        self.facts = VmFacts()
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
        self._spread: list[str] = []  # collectors whose second poll was moved to the VM's phase
        self._unsupported: list[str] = []  # a list, because a set of few names takes six times the memory
        self._topologies: dict[str, object] = {}  # by collector
        self._previous: dict[str, Poll] = {}  # by collector

    def plan_all_collectors(self, now: float) -> None:
        """Make all collectors due now whose commands QEMU supports."""
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
        """Poll these collectors from QEMU; return False if QEMU stalled and the remaining collectors were not polled.

        Raises:
            QmpError: the connection ended.
        """
        if not self.facts.receives_events:
            # Another client may use the monitor at the same interval. The jitter avoids that both collide at each poll.
            self._jitter = 0.9 + 0.2 * self._context.random()
        for batch in self._batches(await self._without_hung_storage(names)):
            when = PollTime.now()
            try:
                replies = await self._executor.execute([command for _, commands in batch for command in commands])
            except (BusyError, StalledError) as error:
                self._observer.on_response_time(self._context.settings.response_seconds)
                for collector, _ in batch:
                    self._observer.on_collector_run(collector.name, PollOutcome.TIMEOUT)
                await self._executor.wait_until_responsive(error)
                return False  # the late replies are out of date, and events may have been missed
            except ProtocolError as error:
                for collector, _ in batch:
                    if len(batch) > 1:
                        self._isolate(collector.name)
                    else:
                        self._switch_off(collector.name, str(error))
                raise
            self._observer.on_response_time(time.monotonic() - when.monotonic)
            for reason, messages in self._executor.take_skipped_messages():
                self._observer.on_messages_skipped(self._vm, reason, messages)
            self._handle_batch(batch, replies, when)
        return True

    async def _without_hung_storage(self, names: Iterable[str]) -> Sequence[str]:
        """Return the collectors to poll now: those that wait for storage are deferred while the VM's storage does not answer."""
        names, gate = list(names), self._context.storage
        by_name = self._collectors.by_name
        waiting = [name for name in names if name in by_name and by_name[name].waits_for_storage]
        pid = self.facts.process.id if self.facts.process is not None else None
        if not waiting or gate is None or await gate.may_query(self._vm, pid):
            return names
        for name in waiting:
            self._observer.on_collector_run(name, PollOutcome.DEFERRED)
        return [name for name in names if name not in waiting]

    def _handle_batch(self, batch: Batch[Collector], replies: Sequence[CommandResult], when: PollTime) -> None:
        """Handle the replies to a batch. If an unreadable reply may belong to several collectors, poll each of them alone."""
        replies_by_collector: list[tuple[Collector, Sequence[CommandResult]]] = []
        for collector, commands in batch:
            replies_by_collector.append((collector, replies[: len(commands)]))
            replies = replies[len(commands) :]
        unclear = [
            collector.name
            for collector, own in replies_by_collector
            if any(isinstance(reply, UnclearReplyError) for reply in own)
        ]
        for collector, own in replies_by_collector:
            if len(unclear) > 1 and collector.name in unclear:
                self._observer.on_collector_run(collector.name, PollOutcome.ERROR)
                self._isolate(collector.name)
            else:
                self._handle_replies(collector, own, when)

    def _isolate(self, name: str) -> None:
        """Poll a collector alone at once, because this collector or another collector in the same write caused a failure."""
        self._failures.isolate(name)
        self._schedule.plan(name, time.monotonic())

    def _batches(self, names: Iterable[str]) -> Iterator[Batch[Collector]]:
        """Yield batches of collectors whose commands fit one write. Each failing or isolated collector gets a batch of its own."""
        remaining: Batch[Collector] = []
        isolated: Batch[Collector] = []
        for name in names:
            collector = self._collectors.by_name.get(name)
            if collector is None or collector.host_only:
                continue
            commands = collector.commands(self.facts)
            if not commands:  # the VM has no such feature any more, such as a balloon
                self._clear_failure(name)
            elif not self._is_off(name):
                (isolated if self._failures.is_isolated(name) else remaining).append((collector, commands))
        while remaining:
            batch, remaining = split_batch(remaining)
            yield batch
        yield from ([entry] for entry in isolated)

    def poll_host(self, names: Iterable[str] | None = None) -> None:
        """Poll collectors that read only the kernel's files. A file takes microseconds, and QEMU is not involved.

        A collector that has no file to read reports an empty list of samples.

        Args:
            names: names of collectors; collectors that send commands to QEMU are ignored. None polls all host-only collectors.
        """
        host_only = self._collectors.host_only
        for name in host_only if names is None else names:
            if name not in host_only or self._is_off(name):
                continue
            collector, when = self._collectors.by_name[name], PollTime.now()
            if files := collector.files(self.facts):
                self._handle_replies(collector, self._process.read(files), when)
            else:
                self._clear_failure(name)
                self._observer.on_samples(self._vm, collector.families, (), when.time_ns)

    def plan_host_collectors(self) -> None:
        """Make the host-only collectors due now. The stall probe calls this, because the stall may have prevented their poll."""
        for name in self._collectors.host_only:
            self._schedule.plan(name, time.monotonic())

    def poll_due_host_collectors(self) -> None:
        """Poll the host-only collectors that are due."""
        self.poll_host(self._schedule.take_due(time.monotonic(), self._collectors.host_only))

    def _is_off(self, name: str) -> bool:
        """Return whether a collector is off after a failure. If it is, plan the end of this time."""
        retry_at = self._failures.retry_at(name)
        if retry_at == -inf or retry_at <= time.monotonic() + SLACK_SECONDS:
            return False
        self._schedule.plan(name, retry_at)
        return True

    def _switch_off(self, name: str, cause: str, *, bug: bool = False) -> None:
        """Switch a failing collector off, for a time that doubles with each failure in a row."""
        settings = self._context.settings
        delay = self._failures.add(
            name, cause, time.monotonic(), 2 * settings.intervals.poll, settings.max_collector_off_seconds
        )
        _log.warning("%s: collector %s is off for %.0f s: %s", self._vm.name, name, delay, cause, exc_info=bug)
        self._on_degraded()

    def _clear_failure(self, name: str) -> None:
        """Poll a collector at its interval again, because it has not failed this time."""
        if self._failures.clear(name):
            _log.info("%s: collector %s works again", self._vm.name, name)
            self._on_degraded()

    def _disable(self, name: str) -> None:
        """Stop polling a collector on this connection, because QEMU lacks a command that the collector needs."""
        self._clear_failure(name)
        self._unsupported.append(name)
        self._schedule.remove(name)

    def _handle_replies(self, collector: Collector, replies: Sequence[CommandResult], when: PollTime) -> None:
        """Report the samples in a collector's replies, and plan the collector's next poll."""
        samples, outcome = self._collect_samples(collector, replies, when)
        self._observer.on_collector_run(collector.name, outcome)
        if outcome in (PollOutcome.OK, PollOutcome.TRUNCATED):
            self._observer.on_samples(self._vm, collector.families, samples, when.time_ns)
            for sample in samples:
                if (observed := self._migration.on_sample(sample)) is not None:
                    change = VmChange.MIGRATED_IN
                    self._observer.on_lifecycle(
                        change, Record(change.type, self._vm, {"observed": observed}, when.time_ns)
                    )
            self._poll_invalidated(collector, samples)
            self._clear_failure(collector.name)
        else:
            self._observer.on_samples_lost(self._vm, collector.families, when.time_ns)
        self._plan_next_poll(collector, samples, when.monotonic)

    def _collect_samples(
        self, collector: Collector, replies: Sequence[CommandResult], when: PollTime
    ) -> tuple[Sequence[Sample], PollOutcome]:
        if any(isinstance(reply, CommandError) and reply.error_class == "CommandNotFound" for reply in replies):
            self._disable(collector.name)
            return (), PollOutcome.UNSUPPORTED
        try:
            previous = self._previous.get(collector.name, Poll())
            collected = iter(collector.collect(replies))
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
            _log.debug("%s: collector %s: QEMU refused a command: %s", self._vm.name, collector.name, error)
            self._clear_failure(collector.name)
        except QmpError as error:
            self._switch_off(collector.name, str(error))
        except Exception as error:  # noqa: BLE001 - a bug in one collector must not end the session
            self._switch_off(collector.name, f"{type(error).__name__}: {error}", bug=True)
        else:
            return poll.samples, PollOutcome.TRUNCATED if truncated else PollOutcome.OK
        return (), PollOutcome.ERROR

    def _poll_invalidated(self, collector: Collector, samples: Sequence[Sample]) -> None:
        """If the collector's topology has changed, make the collectors due whose last results are out of date now."""
        if not collector.invalidates:
            return
        topology = collector.topology(samples)
        if self._topologies.setdefault(collector.name, topology) != topology:
            self._topologies[collector.name] = topology
            self._schedule.demand(collector.invalidates, time.monotonic())

    def _plan_next_poll(self, collector: Collector, samples: Sequence[Sample], start: float) -> None:
        intervals, name = self._context.settings.intervals, collector.name
        delay = collector.next_poll_delay(samples, self.facts, intervals)
        if name in self._failures:
            self._schedule.plan(name, self._failures.retry_at(name))
            return
        if name in self._unsupported or delay is None:
            return
        interval = intervals.poll
        in_slot = delay >= interval and delay % interval == 0 and self.facts.receives_events
        if delay >= interval and name not in self._spread:
            self._spread.append(name)
            delay *= 0.1 + 0.9 * self.phase
        if not in_slot:
            self._schedule.plan(name, start + delay * self._jitter)
            return
        self._schedule.plan(name, next_poll_time(start, delay, interval, self.phase, self._context.attached_vms))
