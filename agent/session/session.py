"""Session with one VM over one connection: identifies the VM, discovers its features, and polls the VM until the connection ends."""

import contextlib
import dataclasses
import logging
import time
from collections.abc import Callable, Sequence
from math import inf

from agent.collectors import VmFacts
from agent.collectors.block import predict_images_listed_without_flat
from agent.collectors.block_layers import has_flat_argument
from agent.collectors.process_and_cgroup import CGROUPS
from agent.host.qemu_processes import is_qemu_command_line, read_command_line
from agent.model.event_table import find_event_definition
from agent.model.metrics.identity import IDENTITY
from agent.model.record import Vm, sanitize
from agent.monitors import DomainXmlReader, Monitor, MonitorConnection
from agent.qmp.commands import Command, OptInQemuChange
from agent.qmp.errors import (
    AmbiguousReplyError,
    CommandError,
    ProtocolError,
    QmpError,
    StalledError,
    UnreadableReplyError,
)
from agent.qmp.protocol import Event, Greeting
from agent.session import identity_and_features
from agent.session.callback_polls import CallbackPolls
from agent.session.collector_failures import CollectorFailures
from agent.session.command_executor import CommandExecutor
from agent.session.disk_command_executor import DiskCommandExecutor
from agent.session.event_handler import EventHandler
from agent.session.guest_agent_port_lookup import GuestAgentPortLookup
from agent.session.host_process import HostProcess
from agent.session.migration_state import MigrationState
from agent.session.poller import Poller
from agent.session.scheduler import Schedule
from agent.session.shared_types import MonitorState, SessionContext, SessionObserver
from agent.session.stall_probe import StallProbe
from agent.session.virtio_disk_lookup import find_disks_with_queryable_queues

_log = logging.getLogger(__name__)

MAX_RESYNC_DELAY_SECONDS = 10.0
"""Maximum delay of a requested resync."""

MAX_BUILDS = 64
"""Maximum number of QEMU builds whose command names are kept. A host usually has fewer than ten."""

DISCOVER_FEATURES = "discover"
"""The schedule's name for the discovery of the VM's features. After the discovery, all collectors are polled."""
MIN_DISCOVERY_SECONDS = 60.0
"""Minimum seconds from a discovery to the next discovery that the guest causes."""

DISCOVERY_FAILURE = "discovery"
"""Name that a failed discovery has in the list of failing collectors."""

LOOKUP_RETRY_SECONDS = 15.0
"""Delay before the VM's process is looked up again after a lookup took too long."""

DISCOVER_PROCESS = "threads"
"""The schedule's name for the discovery of the VM's process, which is due after an event that changes threads or network interfaces."""


class Session:
    """A session with one VM over one connection. Call `identify`, then `run`.

    Attributes:
        shutdown_reason: the reason that QEMU gave in its SHUTDOWN event, or None.
    """

    def __init__(
        self,
        context: SessionContext,
        observer: SessionObserver,
        client: MonitorConnection,
        events: EventHandler,
        on_state: Callable[[MonitorState, str], None],
        on_degraded: Callable[[], None],
        migration: MigrationState,
        failures: CollectorFailures,
    ) -> None:
        """Create a session on an open connection.

        Args:
            context: state that all sessions share.
            observer: receives the records, the samples and the outcome of each poll.
            client: the connection.
            events: handler of the connection's events. The caller creates the handler before the connection, so that no event
                is missed.
            on_state: called with each new state (negotiating, up, busy or stalled) and its cause.
            on_degraded: called when `failures` changes.
            migration: migration state of the VM's process; kept when the VM is attached again.
            failures: the VM's failing collectors; kept when the VM is attached again.
        """
        self.shutdown_reason: str | None = None
        self._context = context
        self._observer = observer
        self._client = client
        self._events = events
        self._migration = migration
        self._failures = failures
        self._on_degraded = on_degraded
        self._probe = StallProbe(client, context, on_state)
        self._executor = CommandExecutor(client, context, self._probe)
        self._schedule = Schedule()
        self._process = HostProcess(context)
        self._guest_agent_ports = GuestAgentPortLookup()
        self._poller: Poller | None = None
        self._callback_polls: CallbackPolls | None = None
        self._unplugs = 0
        self._discovered = False
        self._discovered_at = 0.0

    def overdue_seconds(self, now: float) -> float:
        """Return by how many seconds the session's next action is overdue; negative before the action is due.

        Args:
            now: the current time, in seconds on the monotonic clock.
        """
        return now - self._executor.next_action_at

    def resync(self) -> None:
        """Make all collectors due after a delay that differs between VMs, to spread the resyncs of many VMs over time."""
        if self._poller is not None:
            delay = self._poller.phase * min(self._context.settings.intervals.poll, MAX_RESYNC_DELAY_SECONDS)
            self._schedule.schedule_by(DISCOVER_FEATURES, time.monotonic() + delay)
            self._wake_callback_polls()

    async def identify(self, monitor: Monitor) -> Vm:
        """Identify the VM of this connection, and return it.

        Args:
            monitor: the monitor of the connection.

        Raises:
            QmpError: the connection ended, or a reply that identifies the VM cannot be read or belongs to another command.
        """
        commands = (*identity_and_features.IDENTITY_COMMANDS, identity_and_features.QUERY_RUN_STATE)
        *replies, status = await self._executor.execute_with_retry(commands)
        if any(isinstance(reply, AmbiguousReplyError) for reply in (*replies, status)):
            *replies, status = [(await self._executor.execute_with_retry((command,)))[0] for command in commands]
        if identity_and_features.are_replies_shifted((*replies, status)):
            raise ProtocolError("QEMU replied to a command of an earlier connection")
        self._migration.on_run_state_at_attach(status.get("status", "") if isinstance(status, dict) else "")
        return identity_and_features.identify(
            self._context.settings.host,
            monitor.name,
            replies,
            shared_address=monitor.shared_address,
            container=self._client.libvirt_container_name if isinstance(self._client, DomainXmlReader) else "",
            arguments=self._qemu_arguments,
        )

    def _qemu_arguments(self) -> Sequence[str]:
        """Return the command line of the connected process; empty if the process is unknown or does not run QEMU."""
        argv = read_command_line(self._client.peer_pid) if self._client.peer_pid is not None else []
        return argv if is_qemu_command_line(argv) else ()

    async def run(self, vm: Vm) -> None:
        """Report the events as events of this VM, and poll the VM until the connection ends.

        Raises:
            QmpError: why the connection ended; always raised.
        """
        poller = self._poller = Poller(
            self._context,
            self._observer,
            self._executor,
            self._schedule,
            self._process,
            vm,
            self._migration,
            self._failures,
            self._on_degraded,
        )
        disk_commands = DiskCommandExecutor(self._context, self._executor, self._schedule, vm)
        self._probe.poller = poller
        self._schedule.schedule_by(DISCOVER_FEATURES, self._context.first_polls.reserve_time(time.monotonic()))
        self._schedule.schedule_by(DISCOVER_PROCESS, inf)
        self._events.set_vm_and_report_buffered(
            vm, lambda event, time_ns: self._on_event(poller, disk_commands, event, time_ns)
        )
        callback_polls = self._callback_polls = CallbackPolls(
            self._context, self._client, self._executor, self._schedule, poller, disk_commands
        )
        self._client.ended_future.add_done_callback(lambda _: callback_polls.check_schedule_and_connection_soon())
        self._context.attached_vms += 1
        self._context.schedule_by_vm[vm] = self._schedule_now
        with contextlib.closing(self._process), contextlib.closing(callback_polls):
            try:
                while True:
                    if self._client.ended_future.done():
                        raise self._client.ended_future.result()
                    await self._run_polls(poller, callback_polls, disk_commands, vm)
            except QmpError:
                if poller.facts.cgroup is not None:
                    # The kernel counts an OOM kill before the process ends. The cgroup often exists for longer than the process.
                    poller.poll_host((CGROUPS.name,))
                raise
            finally:
                self._context.attached_vms -= 1
                # Another session may have attached the same VM.
                if self._context.schedule_by_vm.get(vm) == self._schedule_now:
                    del self._context.schedule_by_vm[vm]
                self._events.close()
                self._probe.poller = self._callback_polls = None  # breaks reference cycles

    def _on_event(self, poller: Poller, disk_commands: DiskCommandExecutor, event: Event, time_ns: int) -> None:
        """Handle an event of the attached VM, and schedule the collectors whose results the event invalidates."""
        poller.report_event_samples(event, time_ns)
        match event.name:
            case "SHUTDOWN":
                reason = event.data.get("reason")
                self.shutdown_reason = sanitize(reason, 64) if isinstance(reason, str) else "unknown"
            case "MIGRATION":
                self._migration.on_event(status := event.data.get("status"))
                if status != "setup" and poller.facts.receives_events:
                    # This event shows that MIGRATION events are enabled. The status `setup` shows nothing, because QEMU 7.2 always emits
                    # `setup` on a destination.
                    poller.facts = dataclasses.replace(poller.facts, migration_events=True)
            case "DEVICE_DELETED":
                # A vhost device may replace a virtio disk. The queues of a vhost device must not be queried.
                self._unplugs += 1
                poller.facts = dataclasses.replace(poller.facts, virtio_disks=())
            case "VSERPORT_CHANGE" if not self._guest_agent_ports.has_found_port(event.data.get("id")):
                # The port was plugged in after the last discovery. QEMU emits no event when a port is plugged in. The delay is needed,
                # because a guest can cause any number of VSERPORT_CHANGE events.
                self._schedule.schedule_by(
                    DISCOVER_FEATURES, max(time.monotonic(), self._discovered_at + MIN_DISCOVERY_SECONDS)
                )
        names = (*find_event_definition(event.name).invalidates, *disk_commands.pop_collectors_to_poll())
        if names:
            self._schedule_now(names)

    def _schedule_now(self, names: Sequence[str]) -> None:
        """Make collectors due now.

        Before the first discovery, make only the discovery due. After the discovery, the session polls all collectors.
        """
        self._schedule.schedule_now(names if self._discovered else (DISCOVER_FEATURES,), time.monotonic())
        self._wake_callback_polls()

    async def _run_polls(
        self, poller: Poller, callback_polls: CallbackPolls, disk_commands: DiskCommandExecutor, vm: Vm
    ) -> None:
        """Run callback polls until this task is needed. Then run the due polls and the pending disk commands in this task.

        Raises:
            QmpError: the connection ended.
        """
        try:
            names = await callback_polls.run_until_task_needed()
        except StalledError as error:
            await callback_polls.wait_until_qemu_responds(error)
            self._schedule.schedule_by(DISCOVER_FEATURES, time.monotonic())
            return
        if DISCOVER_FEATURES in names:
            await self._discover(poller, vm)
            return
        if DISCOVER_PROCESS in names:
            unplugs = self._unplugs
            self._use_facts(poller, await self._discover_process(vm, poller.facts), unplugs)
        poller.poll_host(None if DISCOVER_PROCESS in names else names)
        if not await poller.poll(names):
            self._schedule.schedule_by(DISCOVER_FEATURES, time.monotonic())
        await disk_commands.execute_pending_commands(receives_events=poller.facts.receives_events)

    def _wake_callback_polls(self) -> None:
        """Check the schedule soon, because a poll may be due earlier than before."""
        if self._callback_polls is not None:
            self._callback_polls.check_schedule_and_connection_soon()

    async def _discover(self, poller: Poller, vm: Vm) -> None:
        """Discover the VM's features, make the changes to QEMU that the config allows, and make all collectors due."""
        execute, client = self._executor.execute_with_retry, self._client
        self._executor.last_unreadable_error = ""
        replies = await execute(identity_and_features.FEATURE_COMMANDS)
        assert client.greeting is not None
        facts = identity_and_features.parse_feature_replies(
            replies, client.greeting, await self._command_names(client.greeting)
        )
        if facts.balloon is not None:
            facts = dataclasses.replace(facts, guest_stats_seconds=await self._guest_stats_seconds(facts.balloon))
        facts = dataclasses.replace(
            facts,
            receives_events=client.receives_events,
            migration_events=facts.migration_events and client.receives_events,
            guest_agent_port=await self._guest_agent_ports.find(execute, replies[1:]),
        )
        is_allowed = OptInQemuChange.MIGRATION_EVENTS in self._context.settings.changes
        if facts.receives_events and not facts.migration_events and is_allowed:
            (result,) = await execute((identity_and_features.ENABLE_MIGRATION_EVENTS,))
            facts = dataclasses.replace(facts, migration_events=not isinstance(result, QmpError))
        if not has_flat_argument(facts.version):
            (stats,) = await execute((Command("query-blockstats"),))
            facts = dataclasses.replace(facts, images_listed_without_flat=predict_images_listed_without_flat(stats))
        unplugs = self._unplugs
        facts = dataclasses.replace(
            facts, virtio_disks=await find_disks_with_queryable_queues(execute, self._context, facts)
        )
        self._use_facts(poller, await self._discover_process(vm, facts), unplugs)
        now = time.monotonic()
        self._report_discovery(vm, now)
        poller.schedule_all_collectors(now)
        self._discovered_at = now
        self._schedule.schedule_by(
            DISCOVER_FEATURES, now + self._context.settings.intervals.resync * (0.9 + 0.2 * poller.phase)
        )
        self._discovered = True

    def _use_facts(self, poller: Poller, facts: VmFacts, unplugs: int) -> None:
        """Use the facts of a discovery. If a device was unplugged during the discovery, drop the virtio disks: the device may be a disk."""
        poller.facts = facts if self._unplugs == unplugs else dataclasses.replace(facts, virtio_disks=())

    def _report_discovery(self, vm: Vm, now: float) -> None:
        """Report the discovery as failed if a reply could not be read. The next resync repeats the discovery."""
        if cause := self._executor.last_unreadable_error:
            seconds = self._context.settings.intervals.resync
            self._failures.add(DISCOVERY_FAILURE, cause, now, seconds, seconds)
            _log.warning(
                "%s: some features of this QEMU are unknown, so samples may be missing; the agent queries the features again in %.0f s: %s",
                vm.name,
                seconds,
                cause,
            )
            self._on_degraded()
        elif self._failures.clear(DISCOVERY_FAILURE):
            self._on_degraded()

    async def _command_names(self, greeting: Greeting) -> frozenset[str]:
        """Return the names of this QEMU's commands. Query the names from QEMU only for the first VM of each build."""
        build, known = identity_and_features.qemu_build_of(greeting), self._context.build_commands
        if build not in known:
            (reply,) = await self._executor.execute_with_retry((identity_and_features.QUERY_COMMANDS,))
            if isinstance(reply, UnreadableReplyError):
                return frozenset()
            names = identity_and_features.parse_command_names(reply)
            if not build.version:  # the build is unknown, so other VMs may have other commands
                return names
            if not names and not isinstance(reply, CommandError):  # the reply is not a list of commands
                return names
            if len(known) >= MAX_BUILDS:
                known.clear()
            known[build] = names
        return known[build]

    async def _discover_process(self, vm: Vm, facts: VmFacts) -> VmFacts:
        """Find the VM's process, report the sample that describes the VM, and return the facts with the process's data added."""
        time_ns = time.time_ns()
        client, execute = self._client, self._executor.execute_with_retry
        domain = client if isinstance(client, DomainXmlReader) else None
        facts = await self._process.discover(execute, client.peer_pid, vm, facts, domain)
        self._observer.on_samples(vm, (IDENTITY,), (self._process.identity,), time_ns)
        if self._process.timed_out:
            self._schedule.schedule_by(DISCOVER_PROCESS, time.monotonic() + LOOKUP_RETRY_SECONDS)
        return facts

    async def _guest_stats_seconds(self, balloon: str) -> int:
        """Return the interval in seconds at which QEMU polls the guest's memory statistics; 0 without polling.

        Set the interval first if QEMU does not poll the statistics and the config allows the change.
        """
        execute = self._executor.execute_with_retry
        seconds = identity_and_features.parse_stats_interval(
            (await execute((identity_and_features.get_stats_interval_command(balloon),)))[0]
        )
        settings = self._context.settings
        if seconds == 0 and OptInQemuChange.GUEST_STATS_INTERVAL in settings.changes:
            (result,) = await execute(
                (identity_and_features.set_stats_interval_command(balloon, settings.guest_stats_seconds),)
            )
            return 0 if isinstance(result, QmpError) else settings.guest_stats_seconds
        return seconds
