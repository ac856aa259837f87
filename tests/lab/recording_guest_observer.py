"""Helpers for tests of sessions with guest agents: an observer that records all calls, and a manager for the length of a block."""

import asyncio
import contextlib
from collections import Counter
from collections.abc import AsyncIterator, Callable, Sequence
from pathlib import Path
from typing import Any

from agent.collectors.guest import GUEST_COLLECTORS
from agent.guest.config import GuestAgentConfig
from agent.guest.manager import GuestAgentManager
from agent.guest.session import FIRST_RETRY_SECONDS
from agent.guest.shared_types import GuestCommandOutcome
from agent.model.family import Family, Sample
from agent.model.metrics.guest import GUEST_AGENT, GUEST_AGENT_SESSION
from agent.model.metrics.identity import IDENTITY
from agent.model.metrics.migration import MIGRATION
from agent.model.metrics.runstate import RUNSTATE
from agent.model.record import Vm
from tests.lab.simulated_clock import longest_wait_seconds

VM = Vm("hv7", "5f0c2c9e-1111-4111-8111-111111111111", "web-3", "/run/qemu/web-3.qmp")


class RecordingGuestObserver:
    """A GuestObserver that records all calls.

    Attributes:
        samples: VM, families and samples of each call, oldest first.
        lost: the VMs that lost values, oldest first.
        lost_families: the families of the lost values, oldest first.
        disabled: the VMs that the config excluded, oldest first.
        commands: how many commands had each outcome.
    """

    def __init__(self) -> None:
        self.samples: list[tuple[Vm, Sequence[Family], Sequence[Sample]]] = []
        self.lost: list[Vm] = []
        self.lost_families: list[Sequence[Family]] = []
        self.disabled: list[Vm] = []
        self.commands: Counter[tuple[str, GuestCommandOutcome]] = Counter()
        self._changed = asyncio.Event()

    def on_guest_samples(self, vm: Vm, families: Sequence[Family], samples: Sequence[Sample], time_ns: int) -> None:
        assert time_ns > 0
        self.samples.append((vm, families, samples))
        self._changed.set()

    def on_guest_samples_outdated(self, vm: Vm, families: Sequence[Family], time_ns: int) -> None:
        assert families
        assert time_ns > 0
        self.lost.append(vm)
        self.lost_families.append(families)
        self._changed.set()

    def on_guest_queries_disabled(self, vm: Vm, time_ns: int) -> None:
        assert time_ns > 0
        self.disabled.append(vm)
        self._changed.set()

    def on_guest_command(self, command: str, outcome: GuestCommandOutcome) -> None:
        self.commands[command, outcome] += 1
        self._changed.set()

    def states(self, vm: Vm = VM) -> list[str]:
        """Return the states that a session has entered, in order."""
        states: list[str] = []
        for known, families, samples in self.samples:
            if known == vm and GUEST_AGENT_SESSION in families and samples[0].values["state"] not in states[-1:]:
                states.append(samples[0].values["state"])
        return states

    def last(self, family: Family, vm: Vm = VM) -> dict[tuple[str, ...], dict[str, Any]]:
        """Return the values of the last report of a family by labels; empty if there was none."""
        reports = [samples for known, families, samples in self.samples if known == vm and family in families]
        return {sample.labels: sample.values for sample in reports[-1] if sample.family is family} if reports else {}

    def count(self, family: Family, vm: Vm = VM) -> int:
        """Return how often a family was reported."""
        return sum(known == vm and family in families for known, families, _ in self.samples)

    async def wait_until(self, predicate: Callable[[], object]) -> None:
        """Wait until a condition holds; it is checked after each call."""
        async with asyncio.timeout(longest_wait_seconds()):
            while not predicate():
                self._changed.clear()
                await self._changed.wait()

    async def wait_for_state(self, state: str, vm: Vm = VM) -> None:
        """Wait until the session is in a state."""
        await self.wait_until(lambda: self.states(vm)[-1:] == [state])


def guest_config(**keys: Any) -> GuestAgentConfig:
    """Return a config that is enabled, with long intervals unless the test asks for others."""
    intervals = {collector.name: 3600 for collector in GUEST_COLLECTORS} | keys.pop("intervals", {})
    return GuestAgentConfig.model_validate({"enabled": True, "intervals": intervals, **keys})


@contextlib.asynccontextmanager
async def managed(
    observer: RecordingGuestObserver, config: GuestAgentConfig, first_retry_seconds: float = FIRST_RETRY_SECONDS
) -> AsyncIterator[GuestAgentManager]:
    """Run a manager while the `with` block runs."""
    started: asyncio.Future[GuestAgentManager] = asyncio.get_running_loop().create_future()

    async def run() -> None:
        async with asyncio.TaskGroup() as tasks:
            manager = GuestAgentManager(
                config, observer, random_fraction=lambda: 0.0, first_retry_seconds=first_retry_seconds
            )
            manager.set_task_group(tasks)
            started.set_result(manager)
            await asyncio.Event().wait()

    task = asyncio.create_task(run())
    try:
        yield await started
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task


def report_channel(
    manager: GuestAgentManager, socket: Path | str, vm: Vm = VM, *, connected: bool = True, client: bool = False
) -> None:
    """Report a poll of the channel."""
    values = {"connected": connected, "socket": str(socket), "client_connected": client}
    manager.update_reachability_from_samples(vm, (GUEST_AGENT,), (Sample(GUEST_AGENT, (), values),))


def report_run_state(manager: GuestAgentManager, vm: Vm = VM, *, running: bool) -> None:
    """Report a poll of the run state."""
    manager.update_reachability_from_samples(vm, (RUNSTATE,), (Sample(RUNSTATE, (), {"running": running}),))


def report_migration(manager: GuestAgentManager, status: str, vm: Vm = VM) -> None:
    """Report a poll of the migration."""
    manager.update_reachability_from_samples(vm, (MIGRATION,), (Sample(MIGRATION, (), {"status": status}),))


def report_pid(manager: GuestAgentManager, pid: int, vm: Vm = VM) -> None:
    """Report the VM's process."""
    manager.update_reachability_from_samples(vm, (IDENTITY,), (Sample(IDENTITY, (), {"pid": str(pid)}),))
