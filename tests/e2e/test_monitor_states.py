"""The states of a monitor, with real QEMUs. The agent reports each change of state, and other VMs are not affected."""

import signal
import socket
import tempfile
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, Final

import pytest
import pytest_asyncio

from agent.cli.demo.guest import Guest, GuestKind, GuestOptions
from tests.lab.agent_process import AgentProcess, Record, record_time
from tests.lab.fake_qemu import FakeQemu
from tests.lab.transcript import UUID
from tests.lab.waiting import until

pytestmark = pytest.mark.asyncio(loop_scope="module")

TIMING: Final[dict[str, Any]] = {
    "intervals": {"poll": "500ms"},
    "timeouts": {"response": "3s", "greeting": "3s", "max_retry_delay": "1s"},
}


LONGEST_GAP_SECONDS: Final = 120.0
"""Maximum time between two polls of the bystander: far more than the interval, for a machine under load. A bystander that waits for
the end of another VM's failure fails `wait_for_polls` during the failure."""


@dataclass(frozen=True, slots=True)
class WatchedFolder:
    """An agent that watches a folder of monitors.

    Attributes:
        folder: The directory of the monitors' sockets.
        agent: The agent.
        bystander: A guest that must not be affected.
        held: A guest whose monitor is held by another client since before the agent's start.
        holder: The connection of this client.
    """

    folder: Path
    agent: AgentProcess
    bystander: Guest
    held: Guest
    holder: socket.socket

    @asynccontextmanager
    async def guest(self, name: str, **options: Any) -> AsyncIterator[Guest]:
        """Start another guest and wait until the agent has attached it."""
        async with Guest(self.folder, name, GuestOptions(**options)) as guest:
            await self.agent.wait_for_record("vm.attached", vm=guest.uuid)
            yield guest

    @asynccontextmanager
    async def assert_undisturbed(self) -> AsyncIterator[None]:
        """Assert that the bystander is polled all the time while the `with` block runs."""
        polls = [*self.polls(0)]
        yield
        await self.wait_for_polls(1)
        times = [polls[-1], *self.polls(len(polls))]
        gaps = [after - before for before, after in pairwise(times)]
        assert max(gaps) <= LONGEST_GAP_SECONDS, gaps

    def polls(self, skipped: int) -> list[float]:
        """Return the times of the bystander's polls, without the first `skipped` polls."""
        records = self.agent.find_records("sample.block", vm=self.bystander.uuid, device="disk0")
        return [record_time(record) for record in records][skipped:]

    def busy_records(self) -> list[Record]:
        """Return the records that report the held monitor as busy. They have the monitor as the key, because its UUID is not known yet."""
        records = self.agent.find_records("vm.busy")
        return [record for record in records if record["partitionkey"] == str(self.held.monitor)]

    async def wait_for_polls(self, count: int) -> None:
        """Wait until the bystander has been polled `count` more times."""
        before = len(self.polls(0))
        await until(lambda: self.polls(before + count - 1))

    async def state(self, guest: Guest) -> str | None:
        """Return the state of a guest's monitor; None if the agent has not discovered the monitor."""
        series = (await self.agent.metrics()).matching("qmp_agent_monitor_state", monitor=str(guest.monitor))
        assert len(series) <= 1
        return series[0][0]["state"] if series else None

    async def wait_for_state(self, guest: Guest, state: str | None) -> None:
        """Wait until a guest's monitor has a state."""

        async def has_state() -> bool:
            return await self.state(guest) == state

        await until(has_state)


def hold(guest: Guest) -> socket.socket:
    """Connect to a guest's monitor and keep it occupied."""
    holder = socket.socket(socket.AF_UNIX)
    holder.connect(str(guest.monitor))
    return holder


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def watched() -> AsyncIterator[WatchedFolder]:
    with tempfile.TemporaryDirectory(prefix="qmp-") as path:
        folder = Path(path)
        async with AsyncExitStack() as running:
            bystander = Guest(folder, "bystander", GuestOptions(kind=GuestKind.WRITER))
            held = Guest(folder, "held")
            for guest in (bystander, held):
                await running.enter_async_context(guest)
            holder = running.enter_context(hold(held))
            config = TIMING | {"monitors": [{"dial": f"{folder}/*.qmp"}]}
            agent = await running.enter_async_context(AgentProcess(folder, config))
            await bystander.wait_until_booted()
            await agent.wait_for_record("sample.block", vm=bystander.uuid, device="disk0")
            yield WatchedFolder(folder, agent, bystander, held, holder)


async def test_a_monitor_with_another_client_is_busy_until_that_disconnects(watched: WatchedFolder) -> None:
    async with watched.assert_undisturbed():
        await until(watched.busy_records)
        (busy,) = watched.busy_records()
        assert busy["severitytext"] == "WARN"
        assert "another client" in busy["data"]["reason"]
        await watched.wait_for_state(watched.held, "busy")
        assert (await watched.agent.metrics()).names_of(watched.held.uuid) == []
        await watched.wait_for_polls(4)
        begin = watched.agent.mark()
        watched.holder.close()
        await watched.agent.wait_for_record("vm.attached", vm=watched.held.uuid, since=begin)
        await watched.wait_for_state(watched.held, "up")
        assert (await watched.agent.metrics()).value("qemu_vm_up", vm_uuid=watched.held.uuid) == 1
    assert len(watched.busy_records()) == 1, "reported once, not at each attempt"


async def test_a_vm_is_attached_when_its_socket_appears(watched: WatchedFolder) -> None:
    async with watched.guest("new") as guest:
        attached = await watched.agent.wait_for_record("vm.attached", vm=guest.uuid)
        assert attached["data"]["monitor"] == str(guest.monitor)
        assert attached["data"]["reattached"] is False
    gone = await watched.agent.wait_for_record("vm.gone", vm=guest.uuid)
    assert gone["data"]["shutdown_reason"] == "host-signal"
    await watched.wait_for_state(guest, None)


async def test_a_crashed_vm_has_no_series_and_is_attached_again_after_a_restart(watched: WatchedFolder) -> None:
    async with watched.guest("crashing", kind=GuestKind.WRITER) as guest, watched.assert_undisturbed():
        await watched.agent.wait_for_record("sample.block", vm=guest.uuid, device="disk0")
        assert "qemu_block_writes_total" in (await watched.agent.metrics()).names_of(guest.uuid)
        begin = watched.agent.mark()
        await guest.kill()
        gone = await watched.agent.wait_for_record("vm.gone", vm=guest.uuid, since=begin)
        assert "shutdown_reason" not in gone["data"], "a killed QEMU sends no SHUTDOWN"
        assert (await watched.agent.metrics()).names_of(guest.uuid) == []
        await watched.wait_for_state(guest, "gone")
        await guest.stop()
        restart = watched.agent.mark()
        await guest.start()
        await watched.agent.wait_for_record("vm.attached", vm=guest.uuid, since=restart)
        await watched.agent.wait_for_record("sample.block", vm=guest.uuid, since=restart, device="disk0")
        series = await watched.agent.metrics()
        assert series.value("qemu_vm_up", vm_uuid=guest.uuid) == 1
        assert "qemu_block_writes_total" in series.names_of(guest.uuid)
        await watched.wait_for_state(guest, "up")


async def test_a_lost_connection_is_reestablished_and_the_gap_in_events_is_reported(watched: WatchedFolder) -> None:
    """A running QEMU never closes a connection. A proxy between agent and QEMU can do so."""
    async with FakeQemu(watched.folder / "dropping.qmp") as fake, watched.assert_undisturbed():
        await watched.agent.wait_for_record("vm.attached", vm=UUID, reattached=False)
        begin, dropped_at = watched.agent.mark(), time.time()
        fake.drop()
        gone = await watched.agent.wait_for_record("vm.gone", vm=UUID, since=begin)
        attached = await watched.agent.wait_for_record("vm.attached", vm=UUID, since=begin, reattached=True)
        since = attached["data"]["events_lost_since_timestamp_seconds"]
        assert dropped_at <= since <= record_time(gone) + 1e-6
        assert record_time(attached) >= record_time(gone)


async def test_a_vm_that_hangs_is_stalled_and_recovers(watched: WatchedFolder) -> None:
    async with watched.guest("hanging") as guest, watched.assert_undisturbed():
        begin = watched.agent.mark()
        guest.send_signal(signal.SIGSTOP)
        stalled = await watched.agent.wait_for_record("vm.stalled", vm=guest.uuid, since=begin)
        assert stalled["severitytext"] == "ERROR"
        series = await watched.agent.metrics()
        assert series.value("qemu_vm_up", vm_uuid=guest.uuid) == 0
        assert series.value("qmp_agent_monitor_state", monitor=str(guest.monitor)) == 1
        assert await watched.state(guest) == "stalled"
        await watched.wait_for_polls(4)
        guest.send_signal(signal.SIGCONT)
        await watched.agent.wait_for_record("vm.recovered", vm=guest.uuid, since=begin)
        await watched.wait_for_state(guest, "up")
        assert (await watched.agent.metrics()).value("qemu_vm_up", vm_uuid=guest.uuid) == 1
        types = [r["type"] for r in watched.agent.records()[begin:] if r.get("vmuuid") == guest.uuid]
    changes = [kind for kind in types if kind in ("qemu.vm.stalled", "qemu.vm.recovered")]
    # A guest without CPU time for longer than the timeout stalls again.
    assert changes == ["qemu.vm.stalled", "qemu.vm.recovered"] * (len(changes) // 2), "each reported once"


async def test_a_vm_that_is_killed_while_it_hangs_is_gone(watched: WatchedFolder) -> None:
    async with watched.guest("hopeless") as guest, watched.assert_undisturbed():
        begin = watched.agent.mark()
        guest.send_signal(signal.SIGSTOP)
        await watched.agent.wait_for_record("vm.stalled", vm=guest.uuid, since=begin)
        await guest.kill()
        await watched.agent.wait_for_record("vm.gone", vm=guest.uuid, since=begin)
        assert (await watched.agent.metrics()).names_of(guest.uuid) == []
        assert not [*watched.agent.find_records("vm.recovered", vm=guest.uuid, since=begin)]


async def test_readyz_has_the_reason_when_no_monitor_is_up(folder: Path) -> None:
    async with Guest(folder, "only") as guest:
        holder = hold(guest)
        async with AgentProcess(folder, TIMING | {"monitors": [{"dial": f"{folder}/*.qmp"}]}) as agent:

            async def wait_for_readyz(status: int, text: str) -> None:
                async def has_response() -> bool:
                    return await agent.get("/readyz") == (status, f"{text}\n")

                await until(has_response)

            with holder:
                await wait_for_readyz(503, "none of 1 monitors is up: 1 busy")
                assert await agent.get("/healthz") == (200, "ok\n")
            await wait_for_readyz(200, "ready")
            await guest.kill()
            await agent.wait_for_record("vm.gone", vm=guest.uuid)
            await wait_for_readyz(200, "ready")  # a socket that a VM left behind does not count as a missing VM
