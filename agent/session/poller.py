"""Polling of one VM: sends the commands of the due collectors to QEMU, reads the kernel's files, and reports the samples."""

import asyncio
import logging
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from math import inf

from agent.collectors import Collector, VmFacts
from agent.collectors.base import PollResult
from agent.host.types import KernelFilesToRead
from agent.model.family import Family, Sample
from agent.model.metrics.migration import MIGRATION_ENDED
from agent.model.record import Record, Vm
from agent.qmp.client import CommandResult
from agent.qmp.errors import AmbiguousReplyError, CommandError, MonitorBusyError, ProtocolError, QmpError, StalledError
from agent.qmp.protocol import Event
from agent.session.collector_failures import CollectorFailures
from agent.session.command_executor import CommandExecutor
from agent.session.host_process import HostProcess
from agent.session.migration_state import MigrationState
from agent.session.poll_start import PollStart
from agent.session.reply_parser import SAMPLES_PER_TURN, CollectorResult, is_unsupported, parse_in_steps, parse_replies
from agent.session.scheduler import SLACK_SECONDS, Batch, Schedule, commands_of_batch, next_poll_time, split_into_writes
from agent.session.shared_types import PollOutcome, SessionContext, SessionObserver, VmLifecycleChange

_log = logging.getLogger(__name__)


class Poller:
    """Polls one attached VM.

    Attributes:
        facts: known facts about the VM, such as its threads and features.
        phase: position of the VM's polls in the polling interval, 0 to 1; random, to spread the polls of many VMs over time.
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
        self._collectors_at_phase: list[str] = []  # collectors whose polls are already at the VM's phase
        self._unsupported: list[str] = []  # a list, because a set of few names takes six times the memory
        self._files_facts = self.facts
        self._files: dict[str, Sequence[KernelFilesToRead]] = {}  # by collector, for these facts
        self._large: list[str] = []  # collectors whose replies are handled in several turns of the event loop
        # The names and facts of the last call of `callback_batch`, and its result.
        self._last_callback_batch: tuple[Sequence[str], VmFacts, Batch[Collector]] = (), self.facts, []
        self._topologies: dict[str, object] = {}  # by collector
        self._previous: dict[str, PollResult] = {}  # by collector

    def schedule_all_collectors(self, now: float) -> None:
        """Make each collector due now. Disable a collector if QEMU lacks one of its commands."""
        for name, collector in self._collectors.by_name.items():
            if name in self._unsupported:
                continue
            if collector.missing_command(self.facts):
                self._disable_collector(name)
                self._observer.on_collector_run(name, PollOutcome.UNSUPPORTED)
            else:
                self._schedule.schedule_by(name, now)

    def report_event_samples(self, event: Event, time_ns: int) -> None:
        """Report the samples in the data of an event."""
        collector = self._collectors.by_event.get(event.name)
        if collector is not None:
            samples = tuple(collector.from_event[event.name](event.data))
            self._observer.on_samples(self._vm, collector.families, samples, min(time_ns, time.time_ns()))

    async def poll(self, names: Iterable[str]) -> bool:
        """Poll collectors by name: send their commands to QEMU, and report the samples. Return False if QEMU stalled first.

        Raises:
            QmpError: the connection ended.
        """
        if not self.facts.receives_events:
            # Another client may use the monitor at the same interval. The jitter prevents a collision at each poll.
            self._jitter = 0.9 + 0.2 * self._context.random()
        for batch in self._make_batches(await self._defer_for_hung_storage(names)):
            when = PollStart.now()
            try:
                replies = await self._executor.execute(commands_of_batch(batch))
            except (MonitorBusyError, StalledError) as error:
                await self.wait_until_qemu_responds(batch, error)
                return False  # poll again: the late replies are out of date, and events may have been missed
            except ProtocolError as error:
                self.isolate_batch_after_protocol_error(batch, error)
                raise
            for collector, own in self._split_replies(batch, replies, when):
                for collected in parse_in_steps(collector, self.facts, own):
                    if collected is not None:
                        self._report_samples(collector, collected, when)
                    else:
                        await asyncio.sleep(0)
        return True

    def callback_batch(self, names: Sequence[str]) -> Batch[Collector] | None:
        """Return these collectors with their commands if a callback poll can run the collectors (see callback_polls.py).

        Return None if a task is needed: to wait for storage, to send several writes, or to handle large replies in several turns of the
        event loop.
        """
        last_names, last_facts, last_batch = self._last_callback_batch
        if names == last_names and last_facts is self.facts and not self._failures:
            return last_batch
        collectors = [self._collectors.by_name.get(name) for name in names]
        if any(
            collector is None or collector.accesses_storage or collector.name in self._large for collector in collectors
        ):
            return None
        batches = list(self._make_batches(names))
        if len(batches) > 1:
            return None
        batch = batches[0] if batches else []
        if not self._failures:  # otherwise, the batch lacks the collectors that are off
            self._last_callback_batch = names, self.facts, batch
        return batch

    def on_replies(self, batch: Batch[Collector], replies: Sequence[CommandResult], when: PollStart) -> None:
        """Report the samples in the replies to a batch; `when` is the time at which the batch was sent."""
        for collector, own in self._split_replies(batch, replies, when):
            self._report_samples(collector, parse_replies(collector, self.facts, own), when)

    async def wait_until_qemu_responds(self, batch: Batch[Collector], error: MonitorBusyError | StalledError) -> None:
        """Report that the replies to a batch are overdue, and wait until QEMU answers.

        Raises:
            QmpError: the connection ended.
        """
        self._observer.on_response_time(self._context.settings.response_seconds)
        for collector, _ in batch:
            self._observer.on_collector_run(collector.name, PollOutcome.TIMEOUT)
        await self._executor.wait_until_qemu_responds(error)

    def isolate_batch_after_protocol_error(self, batch: Batch[Collector], error: ProtocolError) -> None:
        """Isolate the collectors that waited for replies when a protocol error ended the connection.

        On the next connection, the agent polls these collectors one by one. If the batch has one collector, switch it off for a time.
        """
        for collector, _ in batch:
            if len(batch) > 1:
                self._isolate_collector(collector.name)
            else:
                self._switch_collector_off(collector.name, str(error))

    async def _defer_for_hung_storage(self, names: Iterable[str]) -> Sequence[str]:
        """Return the names of the collectors to poll now. While the VM's storage does not answer, defer collectors that access storage."""
        names, gate = list(names), self._context.storage
        by_name = self._collectors.by_name
        waiting = [name for name in names if name in by_name and by_name[name].accesses_storage]
        pid = self.facts.process.id if self.facts.process is not None else None
        if not waiting or gate is None or await gate.may_query(self._vm, pid):
            return names
        for name in waiting:
            self._observer.on_collector_run(name, PollOutcome.DEFERRED)
        return [name for name in names if name not in waiting]

    def _split_replies(
        self, batch: Batch[Collector], replies: Sequence[CommandResult], when: PollStart
    ) -> list[tuple[Collector, Sequence[CommandResult]]]:
        """Split the replies to a batch by collector. If an unreadable reply may belong to several collectors, poll each of them alone."""
        self._observer.on_response_time(time.monotonic() - when.monotonic)
        for reason, messages in self._executor.pop_skipped_messages():
            self._observer.on_messages_skipped(self._vm, reason, messages)
        if len(batch) == 1:  # the usual case: the poll of the disks
            return [(batch[0][0], replies)]
        replies_by_collector: list[tuple[Collector, Sequence[CommandResult]]] = []
        for collector, commands in batch:
            replies_by_collector.append((collector, replies[: len(commands)]))
            replies = replies[len(commands) :]
        unclear = [
            collector.name
            for collector, own in replies_by_collector
            if any(isinstance(reply, AmbiguousReplyError) for reply in own)
        ]
        if len(unclear) < 2:
            return replies_by_collector
        for name in unclear:
            self._observer.on_collector_run(name, PollOutcome.ERROR)
            self._isolate_collector(name)
        return [(collector, own) for collector, own in replies_by_collector if collector.name not in unclear]

    def _isolate_collector(self, name: str) -> None:
        """Poll a collector again now, in a write of its own, because a collector in the shared write caused a failure."""
        self._failures.isolate(name)
        self._schedule.schedule_by(name, time.monotonic())

    def _make_batches(self, names: Iterable[str]) -> Iterator[Batch[Collector]]:
        """Yield batches of collectors whose commands fit one write. Each isolated collector has its own batch."""
        remaining: Batch[Collector] = []
        isolated: Batch[Collector] = []
        for name in names:
            collector = self._collectors.by_name.get(name)
            if collector is None or collector.reads_only_host_files:
                continue
            commands = collector.commands(self.facts)
            if not commands:  # the VM no longer has the collector's feature, such as a balloon
                self._clear_failure(name)
            elif not self._is_collector_off(name):
                (isolated if self._failures.has_to_poll_alone(name) else remaining).append((collector, commands))
        while remaining:
            batch, remaining = split_into_writes(remaining)
            yield batch
        yield from ([entry] for entry in isolated)

    def poll_host(self, names: Iterable[str] | None = None) -> None:
        """Poll collectors that read only the kernel's files. Reading a file takes microseconds, and QEMU is not involved.

        A collector that has no file to read reports an empty list of samples.

        Args:
            names: names of collectors; collectors that send commands to QEMU are ignored. None polls all host-only collectors.
        """
        host_collectors, when = self._collectors.host_file_collectors, PollStart.now()
        families: list[Family] = []
        samples: list[Sample] = []
        for name in host_collectors if names is None else names:
            if name not in host_collectors or self._is_collector_off(name):
                continue
            collector = self._collectors.by_name[name]
            if files := self._files_of(collector):
                collected = parse_replies(collector, self.facts, self._process.read_files(files))
                own = self._finish_run(collector, collected, when)
                if own is None:
                    continue
                samples += own
            else:
                self._clear_failure(name)
            families += collector.families
        if families:  # one report for all families, because each report costs time
            self._observer.on_samples(self._vm, families, samples, when.time_ns)

    def _files_of(self, collector: Collector) -> Sequence[KernelFilesToRead]:
        """Return the files that a collector reads. The list is cached until `facts` is replaced."""
        if self._files_facts is not self.facts:
            self._files_facts, self._files = self.facts, {}
        files = self._files.get(collector.name)
        if files is None:
            files = self._files[collector.name] = collector.files(self.facts)
        return files

    def schedule_host_collectors(self) -> None:
        """Make the host-only collectors due now, because a stall may have delayed their polls."""
        for name in self._collectors.host_file_collectors:
            self._schedule.schedule_by(name, time.monotonic())

    def poll_due_host_collectors(self) -> None:
        """Poll the host-only collectors that are due."""
        self.poll_host(self._schedule.pop_due_polls(time.monotonic(), self._collectors.host_file_collectors))

    def _is_collector_off(self, name: str) -> bool:
        """Return whether a collector is off after a failure. If so, schedule the collector's next poll for the end of the off time."""
        retry_at = self._failures.retry_at(name)
        if retry_at == -inf or retry_at <= time.monotonic() + SLACK_SECONDS:
            return False
        self._schedule.schedule_by(name, retry_at)
        return True

    def _switch_collector_off(self, name: str, cause: str, bug: Exception | None = None) -> None:
        """Switch a failing collector off, for a time that doubles with each consecutive failure."""
        settings = self._context.settings
        delay = self._failures.add(
            name, cause, time.monotonic(), 2 * settings.intervals.poll, settings.max_collector_off_seconds
        )
        _log.warning("%s: collector %s is off for %.0f s: %s", self._vm.name, name, delay, cause, exc_info=bug)
        self._on_degraded()

    def _clear_failure(self, name: str) -> None:
        """Clear a collector's failures after a success, so that the agent polls the collector at its interval again."""
        if self._failures.clear(name):
            _log.info("%s: collector %s works again", self._vm.name, name)
            self._on_degraded()

    def _disable_collector(self, name: str) -> None:
        """Stop polling a collector on this connection, because QEMU lacks a command that the collector needs."""
        self._clear_failure(name)
        self._unsupported.append(name)
        self._schedule.remove_poll(name)

    def _report_samples(self, collector: Collector, collected: CollectorResult, when: PollStart) -> None:
        """Report the samples in QEMU's replies."""
        if (samples := self._finish_run(collector, collected, when)) is None:
            return
        self._observer.on_samples(self._vm, collector.families, samples, when.time_ns)
        for sample in samples:
            if (observed := self._migration.on_sample(sample)) is not None:
                change = VmLifecycleChange.MIGRATED_IN
                record = Record(change.record_type, self._vm, {"observed": observed}, when.time_ns)
                self._observer.on_lifecycle(change, record)
        self._schedule_invalidated(collector, samples)

    def _finish_run(self, collector: Collector, collected: CollectorResult, when: PollStart) -> Sequence[Sample] | None:
        """Report a run of a collector and schedule its next run. Return the samples with derived values; None after an error."""
        samples, truncated, error = collected
        if len(samples) > SAMPLES_PER_TURN and collector.name not in self._large:
            self._large.append(collector.name)
            self._last_callback_batch = (), self.facts, []
        if error is None and collector.needs_previous:
            try:
                samples = self._compare_with_previous(collector, PollResult(samples, *when))
            except Exception as bug:  # noqa: BLE001 - a bug in one collector must not end the session
                samples, error = (), bug
        if error is None:
            self._observer.on_collector_run(collector.name, PollOutcome.TRUNCATED if truncated else PollOutcome.OK)
            if self._failures:
                self._clear_failure(collector.name)
        else:
            self._observer.on_collector_run(collector.name, self._handle_error(collector.name, error))
            self._observer.on_poll_failed(self._vm, collector.families, when.time_ns)
        self._schedule_next_poll(collector, samples, when.monotonic)
        return samples if error is None else None

    def _handle_error(self, name: str, error: Exception) -> PollOutcome:
        """Handle an error of a collector, and return the outcome of its run."""
        if is_unsupported(error):
            self._disable_collector(name)
            return PollOutcome.UNSUPPORTED
        if isinstance(error, CommandError):
            _log.debug("%s: collector %s: QEMU refused a command: %s", self._vm.name, name, error)
            self._clear_failure(name)
        elif isinstance(error, QmpError):
            self._switch_collector_off(name, str(error))
        else:
            self._switch_collector_off(name, f"{type(error).__name__}: {error}", error)
        return PollOutcome.ERROR

    def _compare_with_previous(self, collector: Collector, poll: PollResult) -> Sequence[Sample]:
        """Report the transitions since the previous poll of a collector. Return the samples, with values derived from both polls."""
        previous = self._previous.get(collector.name, PollResult())
        if (samples := collector.derive(previous, poll)) is not poll.samples:
            poll = poll._replace(samples=tuple(samples))
        self._previous[collector.name] = poll
        for transition in collector.transitions(previous, poll):
            record_type, values = f"qemu.{transition.family.name}", dict(transition.values)
            if transition.family is MIGRATION_ENDED and (role := self._migration.role) is not None:
                values["role"] = role
            record = Record(record_type, self._vm, values, time.time_ns(), severity=transition.severity)
            self._observer.on_transition_between_polls(record)
        return poll.samples

    def _schedule_invalidated(self, collector: Collector, samples: Sequence[Sample]) -> None:
        """Schedule the collectors in `collector.invalidates` if the samples show a new topology, such as new block nodes."""
        if not collector.invalidates:
            return
        topology = collector.topology(samples)
        if self._topologies.setdefault(collector.name, topology) != topology:
            self._topologies[collector.name] = topology
            self._schedule.schedule_now(collector.invalidates, time.monotonic())

    def _schedule_next_poll(self, collector: Collector, samples: Sequence[Sample], start: float) -> None:
        intervals, name, schedule_by = self._context.settings.intervals, collector.name, self._schedule.schedule_by
        delay = collector.next_poll_delay(samples, self.facts, intervals)
        if name in self._failures:
            schedule_by(name, self._failures.retry_at(name))
            return
        if name in self._unsupported or delay is None:
            return
        interval = intervals.poll
        in_slot = delay >= interval and delay % interval == 0 and self.facts.receives_events
        if delay >= interval and name not in self._collectors_at_phase:
            self._collectors_at_phase.append(name)
            delay *= 0.1 + 0.9 * self.phase
        if not in_slot:
            schedule_by(name, start + delay * self._jitter)
            return
        schedule_by(name, next_poll_time(start, delay, interval, self.phase, self._context.attached_vms))
