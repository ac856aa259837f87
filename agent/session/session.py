"""One attached connection: hears every event, asks by schedule, bears a QEMU that does not answer."""

import asyncio
import contextlib
import dataclasses
import logging
import time
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from itertools import islice
from math import inf
from random import random

from agent.collectors import Collector, Facts
from agent.collectors.base import Poll
from agent.model.events import row_of
from agent.model.family import Sample
from agent.model.metrics.about import ABOUT
from agent.model.record import Record, Vm, sanitize
from agent.monitors import MonitorConnection
from agent.qmp.client import CommandResult
from agent.qmp.commands import Change, Command
from agent.qmp.errors import BusyError, CommandError, CommandRefusedError, QmpError, StalledError
from agent.qmp.protocol import Event, Greeting
from agent.session import identity
from agent.session.api import (
    MAIN_LOOP,
    PROCESS,
    MonitorState,
    PollOutcome,
    SessionObserver,
    SessionSettings,
    VmChange,
)
from agent.session.event_handler import EventHandler
from agent.session.host_process import HostProcess
from agent.session.migration_state import MigrationState
from agent.session.scheduler import Schedule, next_poll_time, split_batch

_log = logging.getLogger(__name__)

PROBE_SECONDS = 2.0
"""How often a stalled QEMU is probed out of band, and how long it has to answer."""

IDLE_SECONDS = 86400.0
"""For how long a loop's timer is set at most; some loops have no longer ones."""

MAX_SAMPLES = 4096
"""Samples that are taken of one answer. Making records of the million that fit into one message would hold up all other VMs."""

RESYNC_SECONDS = 10.0
"""The longest wait for a resync that is wanted."""

MAX_BUILDS = 64
"""Builds of QEMU whose commands are remembered; a host has a few."""

_DISCOVER = "discover"

THREADS = "threads"
"""What an event asks for that changed the process' threads or network interfaces."""


class Session:
    """Made before the connection is, so that it misses nothing; `meet`, then `watch`."""

    def __init__(
        self,
        terms: SessionSettings,
        out: SessionObserver,
        tell: Callable[[MonitorState, str], None],
        passage: MigrationState,
    ) -> None:
        self.shutdown_reason: str | None = None
        """Why the VM shut down, where it said so."""
        self._terms = terms
        self._out = out
        self._tell = tell
        self._passage = passage
        self._vm: Vm | None = None
        self._facts = Facts()
        self._event_handler = EventHandler(out, self._heard)
        self._behind = HostProcess(terms)
        self._schedule = Schedule()
        self._idling: asyncio.Future[None] | None = None
        self._phase = random()  # noqa: S311 - spreads the polls of many VMs over the interval
        self._phased: list[str] = []
        self._spread = 1.0
        self._shapes: dict[str, object] = {}
        self._polls: dict[str, Poll] = {}
        self._go_on_by = inf
        self._looked = (
            False  # until then an event brings the first look forward, in which all is asked that it could ask for
        )
        self._menu = terms.menu
        self._never: list[str] = []  # a set of so few is six times as large

    def late_by(self, now: float) -> float:
        """Return by how many seconds this is late with the next thing that it does by itself; what QEMU is waited for is not its fault."""
        return now - self._go_on_by

    # What QEMU says unasked.

    def hear(self, event: Event) -> None:
        """Take an event at the moment it is read."""
        self._event_handler.on_event(event)

    def forget(self) -> None:
        """Drop what was heard before `watch`: somebody else has told it."""
        self._event_handler.discard_buffered()

    def _heard(self, vm: Vm, event: Event, time_ns: int) -> None:
        """Take what an event says besides, and ask what it asks for."""
        carrier = self._menu.carriers.get(event.name)
        if carrier is not None:
            samples = tuple(carrier.from_event[event.name](event.data))
            self._out.on_samples(vm, carrier.families, samples, min(time_ns, time.time_ns()))
        match event.name:
            case "SHUTDOWN":
                reason = event.data.get("reason")
                self.shutdown_reason = sanitize(reason, 64) if isinstance(reason, str) else "unknown"
            case "MIGRATION":
                self._passage.migrates(status := event.data.get("status"))
                if status != "setup" and self._facts.receives_events:
                    # They are on; a destination tells its setup even where they are off (QEMU 7.2).
                    self._facts = dataclasses.replace(self._facts, migration_events=True)
        commander = self._terms.commander
        asks = (*row_of(event.name).invalidates, *(commander.refreshes_due(vm) if commander is not None else ()))
        if asks:
            self._schedule.demand(asks if self._looked else (_DISCOVER,), time.monotonic())
            self._rouse()

    def resync(self) -> None:
        """Ask everything anew, each VM at its own moment within the polling interval."""
        if self._vm is not None:
            wait = self._phase * min(self._terms.intervals.poll, RESYNC_SECONDS)
            self._schedule.plan(_DISCOVER, time.monotonic() + wait)
            self._rouse()

    # What we ask.

    async def meet(self, client: MonitorConnection, host: str, monitor: str) -> Vm:
        """Ask who is there, and whether it is there yet.

        Raises:
            QmpError: the connection ended first.
        """
        *said, run = await self._patiently(client, (*identity.WHO, identity.STATUS))
        self._passage.begins(run.get("status", "") if isinstance(run, dict) else "")
        return identity.who(host, monitor, said)

    async def watch(self, client: MonitorConnection, vm: Vm) -> None:
        """Give the events their owner, then ask by schedule until the connection ends.

        Raises:
            QmpError: why it ended.
        """
        self._vm = vm
        self._schedule.plan(_DISCOVER, self._terms.first_looks.take(time.monotonic()))
        self._schedule.plan(THREADS, inf)
        self._event_handler.attach(vm)
        client.ended.add_done_callback(lambda _: self._rouse())
        self._terms.asked += 1
        with contextlib.closing(self._behind):
            try:
                while True:
                    if client.ended.done():
                        raise client.ended.result()
                    await self._step(client, vm, self._schedule.take(time.monotonic()))
            finally:
                self._terms.asked -= 1
                self._event_handler.close(vm)

    async def _step(self, client: MonitorConnection, vm: Vm, names: Sequence[str]) -> None:
        """Do what is due, or wait until something is."""
        if not names:
            await self._idle()
        elif _DISCOVER in names:
            await self._discover(client, vm)
        else:
            if THREADS in names:
                self._facts = await self._locate(client, vm, self._facts)
            self._look(vm, self._menu.beside if THREADS in names else names)
            await self._poll(client, vm, [c for name in names if (c := self._menu.by_name.get(name)) is not None])
            await self._obey(client, vm)

    async def _idle(self) -> None:
        loop, at = asyncio.get_running_loop(), self._schedule.next_at()
        self._go_on_by, self._idling = at, loop.create_future()
        due = loop.call_later(max(0.0, min(at - time.monotonic(), IDLE_SECONDS)), self._rouse)
        try:
            await self._idling
        finally:
            due.cancel()

    def _rouse(self) -> None:
        """Have `_idle` end, if that is where it is: something is due, or the connection has ended."""
        if self._idling is not None and not self._idling.done():
            self._idling.set_result(None)

    async def _discover(self, client: MonitorConnection, vm: Vm) -> None:
        """Learn what the VM has, make the changes that the operator asked for, and have everything asked anew."""
        answers = await self._patiently(client, identity.WHAT)
        assert client.greeting is not None
        facts = identity.facts(answers, client.greeting, await self._commands(client, client.greeting))
        if facts.balloon is not None:
            facts = dataclasses.replace(facts, guest_stats_seconds=await self._guest_stats(client, facts.balloon))
        facts = dataclasses.replace(
            facts,
            receives_events=client.receives_events,
            migration_events=facts.migration_events and client.receives_events,
        )
        if facts.receives_events and not facts.migration_events and Change.MIGRATION_EVENTS in self._terms.changes:
            done = not isinstance(
                (await self._patiently(client, (identity.TURN_ON_MIGRATION_EVENTS,)))[0], CommandError
            )
            facts = dataclasses.replace(facts, migration_events=done)
        self._facts = await self._locate(client, vm, facts)
        now = time.monotonic()
        for name, collector in self._menu.by_name.items():
            if name in self._never:
                continue
            if collector.missing_command(facts):
                self._off(name)
                self._out.on_collector_run(name, PollOutcome.UNSUPPORTED)
            else:
                self._schedule.plan(name, now)
        self._schedule.plan(_DISCOVER, now + self._terms.intervals.resync * (0.9 + 0.2 * self._phase))
        self._looked = True

    async def _commands(self, client: MonitorConnection, greeting: Greeting) -> frozenset[str]:
        """Return what this QEMU understands, asked once for each build that was ever met."""
        build = identity.build(greeting)
        known = self._terms.commands
        if build not in known:
            (answer,) = await self._patiently(client, (identity.COMMANDS,))
            if len(known) >= MAX_BUILDS:
                known.clear()
            known[build] = identity.commands(answer)
        return known[build]

    def _off(self, name: str) -> None:
        """Ask this no more on this connection: its QEMU lacks a command, and will not get it while it lives."""
        self._never.append(name)
        self._schedule.drop(name)

    async def _locate(self, client: MonitorConnection, vm: Vm, facts: Facts) -> Facts:
        """Learn which process it is and what its threads are, and tell what the VM is."""
        time_ns = time.time_ns()
        facts = await self._behind.learn(partial(self._patiently, client), client.peer_pid, vm, facts)
        self._out.on_samples(vm, (ABOUT,), (self._behind.about,), time_ns)
        return facts

    async def _guest_stats(self, client: MonitorConnection, balloon: str) -> int:
        """Return how often the guest is asked for its statistics, having set it where nobody has and the operator wants it."""
        seconds = identity.interval((await self._patiently(client, (identity.interval_ask(balloon),)))[0])
        wanted = self._terms.guest_stats_seconds
        if seconds == 0 and Change.GUEST_STATS_INTERVAL in self._terms.changes:
            (answer,) = await self._patiently(client, (identity.set_interval_ask(balloon, wanted),))
            return 0 if isinstance(answer, CommandError) else wanted
        return seconds

    async def _poll(self, client: MonitorConnection, vm: Vm, collectors: Sequence[Collector]) -> None:
        rounds = [(c, asks) for c in collectors if (asks := c.commands(self._facts))]
        if (
            not self._facts.receives_events
        ):  # one that visits, maybe: not always when somebody else does, who comes as often
            self._spread = 0.9 + 0.2 * random()  # noqa: S311 - as above
        while rounds:
            batch, rounds = split_batch(rounds)
            time_ns, start = time.time_ns(), time.monotonic()
            try:
                answers = await self._ask(client, [ask for _, asks in batch for ask in asks])
            except (BusyError, StalledError) as error:
                self._out.on_response(self._terms.reply_seconds)
                for collector, _ in batch:
                    self._out.on_collector_run(collector.name, PollOutcome.TIMEOUT)
                await self._stalled(client, error)
                self._schedule.plan(_DISCOVER, time.monotonic())  # much may have changed; what came late is stale
                return
            self._out.on_response(time.monotonic() - start)
            for collector, asks in batch:
                mine, answers = answers[: len(asks)], answers[len(asks) :]
                self._take(vm, collector, mine, Poll((), time_ns, start))

    def _look(self, vm: Vm, names: Iterable[str]) -> None:
        """Ask the host's kernel what it knows, which takes some microseconds a file and needs no answer of QEMU's.

        Where there is nothing to ask for any more there is nothing any more.
        """
        for collector in (self._menu.by_name[name] for name in names if name in self._menu.beside):
            time_ns, start = time.time_ns(), time.monotonic()
            if files := collector.files(self._facts):
                self._take(vm, collector, self._behind.answer(files), Poll((), time_ns, start))
            else:
                self._out.on_samples(vm, collector.families, (), time_ns)

    def _take(self, vm: Vm, collector: Collector, answers: Sequence[CommandResult], poll: Poll) -> None:
        """Make samples of answers, and plan to ask again."""
        samples, outcome = self._collect(vm, collector, answers, poll)
        self._out.on_collector_run(collector.name, outcome)
        if outcome in (PollOutcome.OK, PollOutcome.TRUNCATED):
            self._out.on_samples(vm, collector.families, samples, poll.time_ns)
            for sample in samples:
                if (observed := self._passage.look(sample)) is not None:
                    change = VmChange.MIGRATED_IN
                    record = Record(change.type, vm, {"observed": observed}, poll.time_ns)
                    self._out.on_lifecycle(change, record)
            self._compare(collector, samples)
        self._plan(collector, samples, poll.at)

    async def _obey(self, client: MonitorConnection, vm: Vm) -> None:
        """Make the changes that are wanted of what was just detected, one by one, and ask what is wanted then.

        Once QEMU has stalled, what was detected is old: the changes that are left are not made. Where no event is heard none is made:
        a threshold is of no use then, and levels are compared at each poll all the same.
        """
        commander = self._terms.commander
        if commander is None:
            return
        stalled = False
        for disk, ask in await commander.pending_commands(vm) if self._facts.receives_events else ():
            done = False
            try:
                if not stalled:
                    (answer,) = await self._ask(client, (ask,))
                    done = not isinstance(answer, CommandError)
            except CommandRefusedError as error:  # the operator has just turned it off
                _log.info("%s: %s", vm.name, error)
            except StalledError as error:
                stalled = True
                await self._stalled(client, error)
            finally:
                commander.on_command_done(vm, disk, done=done)
        self._schedule.demand(commander.refreshes_due(vm), time.monotonic())

    def _collect(
        self, vm: Vm, collector: Collector, answers: Sequence[CommandResult], poll: Poll
    ) -> tuple[Sequence[Sample], PollOutcome]:
        if any(isinstance(a, CommandError) and a.error_class == "CommandNotFound" for a in answers):
            self._off(collector.name)
            return (), PollOutcome.UNSUPPORTED
        try:
            before = self._polls.get(collector.name, Poll())
            made = iter(collector.collect(answers))
            poll = Poll(tuple(islice(made, MAX_SAMPLES)), poll.time_ns, poll.at)
            cut = next(made, None) is not None
            if (samples := collector.derive(before, poll)) is not poll.samples:
                poll = Poll(tuple(samples), poll.time_ns, poll.at)
            if collector.needs_previous:
                self._polls[collector.name] = poll
            for notice in collector.transitions(before, poll):
                kind, values = f"qemu.{notice.family.name}", dict(notice.values)
                self._out.on_transition(Record(kind, vm, values, time.time_ns(), severity=notice.severity))
        except QmpError as error:
            _log.debug("%s: %s: %s", self._vm, collector.name, error)
        except Exception:  # noqa: BLE001 - one collector's bug, met by what one VM said
            _log.exception("%s could not read an answer", collector.name)
        else:
            return poll.samples, PollOutcome.TRUNCATED if cut else PollOutcome.OK
        return (), PollOutcome.ERROR

    def _compare(self, collector: Collector, samples: Sequence[Sample]) -> None:
        """Ask again for what a changed shape made untrue."""
        if not collector.invalidates:
            return
        shape = collector.topology(samples)
        if self._shapes.setdefault(collector.name, shape) != shape:
            self._shapes[collector.name] = shape
            self._schedule.demand(collector.invalidates, time.monotonic())

    def _plan(self, collector: Collector, samples: Sequence[Sample], start: float) -> None:
        name, poll = collector.name, self._terms.intervals.poll
        wait = collector.next_poll_delay(samples, self._facts, self._terms.intervals)
        if name in self._never or wait is None:
            return
        shared = wait >= poll and wait % poll == 0 and self._facts.receives_events
        if wait >= poll and name not in self._phased:
            self._phased.append(name)
            wait *= 0.1 + 0.9 * self._phase
        at = (
            next_poll_time(start, wait, poll, self._phase, self._terms.asked) if shared else start + wait * self._spread
        )
        self._schedule.plan(name, at)

    async def _ask(self, client: MonitorConnection, asks: Sequence[Command]) -> list[CommandResult]:
        self._go_on_by = time.monotonic() + self._terms.reply_seconds
        return await client.execute(asks, deadline=self._terms.reply_seconds)

    async def _patiently(self, client: MonitorConnection, asks: Sequence[Command]) -> list[CommandResult]:
        """Ask, and where QEMU stalls, wait and ask again: for what must be known before anything else."""
        while True:
            try:
                return await self._ask(client, asks)
            except (BusyError, StalledError) as error:
                await self._stalled(client, error)

    async def _stalled(self, client: MonitorConnection, why: BusyError | StalledError) -> None:
        """Wait for the overdue replies, sending nothing in-band meanwhile: the command is still running inside QEMU. Or wait to be let in.

        Raises:
            QmpError: the connection ended first.
        """
        self._tell(MonitorState.BUSY if isinstance(why, BusyError) else MonitorState.STALLED, str(why))
        self._go_on_by = inf
        # What the kernel is asked may have been taken from the schedule, for after what QEMU now does not answer.
        for name in self._menu.beside:
            self._schedule.plan(name, time.monotonic())
        settled = asyncio.ensure_future(client.wait_idle())
        try:
            while not (await asyncio.wait({settled}, timeout=PROBE_SECONDS))[0]:
                if self._vm is not None:
                    self._look(self._vm, self._schedule.take(time.monotonic(), self._menu.beside))
                if client.can_probe:
                    answers = await client.probe(deadline=PROBE_SECONDS)
                    if not settled.done():
                        self._tell(MonitorState.STALLED, MAIN_LOOP if answers else PROCESS)
            settled.result()
        finally:
            settled.cancel()
        self._go_on_by = time.monotonic()
        self._tell(MonitorState.UP if self._vm is not None else MonitorState.NEGOTIATING, "")
