"""Runs the sessions with all guest agents, one task for each VM that has a channel and that the config selects."""

import asyncio
import logging
import random
import time
from collections.abc import Callable, Sequence

from agent.common.vm_patterns import matches_vm
from agent.guest.channels import ChannelOpener, make_channel_opener
from agent.guest.config import GuestAgentConfig
from agent.guest.session import FIRST_RETRY_SECONDS, GUEST_FAMILIES, GuestSession
from agent.guest.shared_types import GuestObserver, GuestReachability
from agent.model.family import Family, FieldValues, Sample
from agent.model.metrics.guest import GUEST_AGENT, GUEST_AGENT_SESSION
from agent.model.metrics.identity import IDENTITY
from agent.model.metrics.migration import INACTIVE_STATUSES, MIGRATION
from agent.model.metrics.runstate import RUNSTATE
from agent.model.record import Vm
from agent.qga.channel import OpenGuestChannel

_log = logging.getLogger(__name__)

MAX_PID = 1 << 31
BUG_RETRY_SECONDS = 300.0
"""Seconds before a session restarts after an internal error."""


class GuestAgentManager:
    """Starts and ends the sessions with guest agents, and updates each session's `GuestReachability` from the polls of QEMU."""

    def __init__(
        self,
        config: GuestAgentConfig,
        observer: GuestObserver,
        *,
        random_fraction: Callable[[], float] = random.random,
        first_retry_seconds: float = FIRST_RETRY_SECONDS,
    ) -> None:
        """Create a manager without sessions.

        Args:
            config: the config.
            observer: receives the sessions' results.
            random_fraction: returns a number from 0 to 1, to spread the queries of many VMs.
            first_retry_seconds: delay before the first retry of a guest agent that does not respond.
        """
        self._config = config
        self._observer = observer
        self._random_fraction = random_fraction
        self._first_retry_seconds = first_retry_seconds
        self._task_group: asyncio.TaskGroup | None = None
        self._sessions: dict[Vm, GuestSession] = {}
        self._session_tasks: dict[Vm, asyncio.Task[None]] = {}
        self._reachability_by_vm: dict[Vm, GuestReachability] = {}
        self._channel_openers: dict[Vm, OpenGuestChannel] = {}

    def __len__(self) -> int:
        return len(self._sessions)

    def set_task_group(self, tasks: asyncio.TaskGroup) -> None:
        """Run the sessions in this task group from now on."""
        self._task_group = tasks

    def apply_config(self, config: GuestAgentConfig) -> None:
        """Apply a new config. End all sessions. A session starts again after the next poll of its VM."""
        self._config = config
        for vm in list(self._reachability_by_vm):
            had_session = vm in self._sessions
            self._end_session(vm)
            if had_session:
                self._observer.on_guest_samples_outdated(vm, (*GUEST_FAMILIES, GUEST_AGENT_SESSION), time.time_ns())
            if had_session and not self._is_selected(vm):
                self._observer.on_guest_queries_disabled(vm, time.time_ns())

    def update_reachability_from_samples(self, vm: Vm, families: Sequence[Family], samples: Sequence[Sample]) -> None:
        """Handle the samples of a poll of the VM's QEMU. Ignore families that do not change `GuestReachability`."""
        reads = [read for family, read in _REACHABILITY_READERS if family in families]
        if not reads or not self._is_selected(vm):
            return
        reachability = self._reachability_by_vm.setdefault(vm, GuestReachability())
        for read in reads:
            read(reachability, samples)
        if GUEST_AGENT in families and reachability.opened_by_guest is not None:
            self._start_session(vm, reachability, make_channel_opener(vm, self._config, self._channel_openers.get(vm)))
        if (session := self._sessions.get(vm)) is not None:
            session.on_reachability_changed()

    def on_qemu_responsiveness_changed(
        self, vm: Vm, *, responsive: bool, open_channel: OpenGuestChannel | None = None
    ) -> None:
        """Handle a QEMU that has begun or stopped responding to QMP commands.

        Args:
            vm: the VM.
            responsive: whether its QEMU responds.
            open_channel: opens the channel through the VM's manager; None if the agent connects to the socket itself.
        """
        if open_channel is not None:
            self._channel_openers[vm] = open_channel
        reachability = self._reachability_by_vm.get(vm)
        if reachability is not None and reachability.responsive is not responsive:
            reachability.responsive = responsive
            if (session := self._sessions.get(vm)) is not None:
                session.on_reachability_changed()

    def on_vm_detached(self, vm: Vm) -> None:
        """End the session with the guest agent of a VM that is no longer attached."""
        self._channel_openers.pop(vm, None)
        self._end_session(vm)

    def _end_session(self, vm: Vm) -> None:
        self._reachability_by_vm.pop(vm, None)
        self._sessions.pop(vm, None)
        if (task := self._session_tasks.pop(vm, None)) is not None:
            task.cancel()

    def _is_selected(self, vm: Vm) -> bool:
        return self._config.enabled and any(matches_vm(pattern, vm.name, vm.uuid) for pattern in self._config.vms)

    def _start_session(self, vm: Vm, reachability: GuestReachability, opener: ChannelOpener) -> None:
        """Start the session with a VM's guest agent. Do nothing if the session runs already."""
        if self._task_group is None or vm in self._sessions:
            return
        session = self._sessions[vm] = GuestSession(
            vm,
            self._config,
            opener,
            self._observer,
            random_fraction=self._random_fraction,
            first_retry_seconds=self._first_retry_seconds,
        )
        session.reachability = reachability
        self._session_tasks[vm] = self._task_group.create_task(
            self._run_session(vm, session), name=f"guest agent of {vm.name}"
        )

    async def _run_session(self, vm: Vm, session: GuestSession) -> None:
        while True:
            try:
                await session.run()
            except Exception:  # noqa: BLE001 - a bug that one guest triggers must not end the sessions with others
                _log.exception(
                    "%s: guest agent: internal error; the session restarts in %g s", vm.name, BUG_RETRY_SECONDS
                )
                await asyncio.sleep(BUG_RETRY_SECONDS)


def _read_channel(reachability: GuestReachability, samples: Sequence[Sample]) -> None:
    """Read the state of the channel. A missing sample means that the virtio serial port was unplugged."""
    unplugged: FieldValues = {"connected": False}
    values = next((sample.values for sample in samples if sample.family is GUEST_AGENT), unplugged)
    reachability.opened_by_guest = values.get("connected")
    reachability.socket = values.get("socket", "")
    reachability.client_connected = values.get("client_connected", False) and not reachability.agent_connected


def _read_run_state(reachability: GuestReachability, samples: Sequence[Sample]) -> None:
    values = next((sample.values for sample in samples if sample.family is RUNSTATE), {})
    reachability.running = values.get("running") is True


def _read_migration(reachability: GuestReachability, samples: Sequence[Sample]) -> None:
    values = next((sample.values for sample in samples if sample.family is MIGRATION), {})
    reachability.migrating = values.get("status", "none") not in INACTIVE_STATUSES


def _read_pid(reachability: GuestReachability, samples: Sequence[Sample]) -> None:
    values = next((sample.values for sample in samples if sample.family is IDENTITY), {})
    pid = values.get("pid", "")
    reachability.pid = int(pid) if pid.isdecimal() and int(pid) < MAX_PID else None


_REACHABILITY_READERS = (
    (GUEST_AGENT, _read_channel),
    (RUNSTATE, _read_run_state),
    (MIGRATION, _read_migration),
    (IDENTITY, _read_pid),
)
"""Families whose samples change `GuestReachability`, each with the function that reads the samples."""

REACHABILITY_FAMILIES = frozenset(family for family, _ in _REACHABILITY_READERS)
"""Families whose samples `GuestAgentManager.update_reachability_from_samples` uses."""
