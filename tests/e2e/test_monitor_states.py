"""What becomes of a VM's monitor is told, and none of it is felt by the VM beside it."""

import signal
import socket
import tempfile
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, Final

import pytest
import pytest_asyncio

from agent.cli.demo.guest import Guest, GuestKind, GuestOptions, until
from tests.lab.agent_process import AgentProcess, record_time
from tests.lab.fake_qemu import FakeQemu
from tests.lab.transcript import UUID

pytestmark = pytest.mark.asyncio(loop_scope="module")

POLL_SECONDS: Final = 0.5
TIMING: Final[dict[str, Any]] = {
    "intervals": {"poll": "500ms"},
    "timeouts": {"response": "1s", "greeting": "1s", "retry": "1s"},
}


@dataclass(frozen=True, slots=True)
class Stage:
    """An agent that watches a folder, and one VM in it that nothing happens to.

    Attributes:
        held: a guest whose monitor had somebody on it before the agent came.
        holder: that one's connection.
    """

    folder: Path
    agent: AgentProcess
    bystander: Guest
    held: Guest
    holder: socket.socket

    @asynccontextmanager
    async def guest(self, name: str, **options: Any) -> AsyncIterator[Guest]:
        """Another guest, which the agent has attached."""
        async with Guest(self.folder, name, GuestOptions(**options)) as guest:
            await self.agent.wait_for_record("vm.attached", vm=guest.uuid)
            yield guest

    @asynccontextmanager
    async def undisturbed(self) -> AsyncIterator[None]:
        """Within this, the bystander is polled as often as ever."""
        polls = [*self.polls(0)]
        yield
        await self.goes_on(1)
        times = [polls[-1], *self.polls(len(polls))]
        gaps = [after - before for before, after in pairwise(times)]
        assert max(gaps) <= 3 * POLL_SECONDS, gaps

    def polls(self, skipped: int) -> list[float]:
        """Return when the bystander was polled, but for the first so many times."""
        return [
            record_time(r) for r in self.agent.find_records("sample.block", vm=self.bystander.uuid, device="disk0")
        ][skipped:]

    async def goes_on(self, times: int) -> None:
        """Wait until the bystander has been polled so many times more."""
        before = len(self.polls(0))
        await until(lambda: self.polls(before + times - 1), times * POLL_SECONDS + 5)

    async def state(self, guest: Guest) -> str | None:
        """Return the state of the session with a guest's monitor."""
        found = (await self.agent.metrics()).matching("qmp_agent_monitor_state", monitor=str(guest.monitor))
        assert len(found) <= 1
        return found[0][0]["state"] if found else None

    async def becomes(self, guest: Guest, state: str | None) -> None:
        """Wait for a state."""

        async def is_so() -> bool:
            return await self.state(guest) == state

        await until(is_so, 5)


def hold(guest: Guest) -> socket.socket:
    """Take a guest's monitor, as another client would that forgets to leave."""
    holder = socket.socket(socket.AF_UNIX)
    holder.connect(str(guest.monitor))
    return holder


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def stage() -> AsyncIterator[Stage]:
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
            await bystander.booted()
            await agent.wait_for_record("sample.block", vm=bystander.uuid, device="disk0")
            yield Stage(folder, agent, bystander, held, holder)


async def test_a_monitor_that_somebody_holds_is_busy_until_it_is_freed(stage: Stage) -> None:
    async with stage.undisturbed():
        busy = await stage.agent.wait_for_record("vm.busy")
        assert busy["severity"] == "warning"
        assert "another client" in busy["data"]["reason"]
        assert busy["partitionkey"] == str(stage.held.monitor), "nobody knows yet who it is"
        await stage.becomes(stage.held, "busy")
        assert (await stage.agent.metrics()).names_of(stage.held.uuid) == []
        await stage.goes_on(4)
        begin = stage.agent.mark()
        stage.holder.close()
        await stage.agent.wait_for_record("vm.attached", vm=stage.held.uuid, since=begin)
        await stage.becomes(stage.held, "up")
        assert (await stage.agent.metrics()).value("qemu_vm_up", vm_uuid=stage.held.uuid) == 1
    assert len([*stage.agent.find_records("vm.busy")]) == 1, "told once, not at each attempt"


async def test_a_vm_is_attached_within_a_second_of_its_sockets_appearing(stage: Stage) -> None:
    async with stage.guest("new") as guest:
        attached = await stage.agent.wait_for_record("vm.attached", vm=guest.uuid)
        assert record_time(attached) - guest.monitor.stat().st_ctime < 1.0
        assert attached["data"]["monitor"] == str(guest.monitor)
        assert attached["data"]["reattached"] is False
    gone = await stage.agent.wait_for_record("vm.gone", vm=guest.uuid)
    assert gone["data"]["shutdown_reason"] == "host-signal"
    await stage.becomes(guest, None)


async def test_a_vm_that_crashes_leaves_no_series_and_is_attached_again_when_it_is_back(stage: Stage) -> None:
    async with stage.guest("crashing", kind=GuestKind.WRITER) as guest, stage.undisturbed():
        await stage.agent.wait_for_record("sample.block", vm=guest.uuid, device="disk0")
        assert "qemu_block_writes_total" in (await stage.agent.metrics()).names_of(guest.uuid)
        begin = stage.agent.mark()
        await guest.kill()
        gone = await stage.agent.wait_for_record("vm.gone", vm=guest.uuid, since=begin, timeout=2)
        assert "shutdown_reason" not in gone["data"], "it had no time to say why"
        assert (await stage.agent.metrics()).names_of(guest.uuid) == []
        assert await stage.state(guest) == "gone"
        await guest.stop()
        await guest.start()
        await stage.agent.wait_for_record("vm.attached", vm=guest.uuid, since=begin, timeout=2)
        await stage.agent.wait_for_record("sample.block", vm=guest.uuid, since=begin, device="disk0")
        series = await stage.agent.metrics()
        assert series.value("qemu_vm_up", vm_uuid=guest.uuid) == 1
        assert "qemu_block_writes_total" in series.names_of(guest.uuid)
        await stage.becomes(guest, "up")


async def test_a_connection_that_is_lost_is_made_again_and_it_is_told_what_may_have_been_missed(stage: Stage) -> None:
    """A real QEMU never hangs up while it lives; what passes a monitor on, as over TCP, does."""
    async with FakeQemu(stage.folder / "dropping.qmp") as fake, stage.undisturbed():
        await stage.agent.wait_for_record("vm.attached", vm=UUID, reattached=False)
        begin = stage.agent.mark()
        fake.drop()
        gone = await stage.agent.wait_for_record("vm.gone", vm=UUID, since=begin)
        attached = await stage.agent.wait_for_record("vm.attached", vm=UUID, since=begin, reattached=True)
        since = attached["data"]["events_lost_since_timestamp_seconds"]
        assert since == pytest.approx(record_time(gone), abs=0.01)
        assert record_time(attached) - record_time(gone) < 1.0


async def test_a_vm_that_hangs_is_stalled_and_recovers(stage: Stage) -> None:
    async with stage.guest("hanging") as guest, stage.undisturbed():
        begin = stage.agent.mark()
        guest.send_signal(signal.SIGSTOP)
        stalled = await stage.agent.wait_for_record("vm.stalled", vm=guest.uuid, since=begin, timeout=5)
        assert stalled["severity"] == "error"
        series = await stage.agent.metrics()
        assert series.value("qemu_vm_up", vm_uuid=guest.uuid) == 0
        assert series.value("qmp_agent_monitor_state", monitor=str(guest.monitor)) == 1
        assert await stage.state(guest) == "stalled"
        await stage.goes_on(4)
        guest.send_signal(signal.SIGCONT)
        await stage.agent.wait_for_record("vm.recovered", vm=guest.uuid, since=begin, timeout=5)
        assert (await stage.agent.metrics()).value("qemu_vm_up", vm_uuid=guest.uuid) == 1
        assert await stage.state(guest) == "up"
    told = [r["type"] for r in stage.agent.records()[begin:] if r.get("vmuuid") == guest.uuid]
    assert told.count("qemu.vm.stalled") == told.count("qemu.vm.recovered") == 1


async def test_a_vm_that_is_killed_while_it_hangs_is_gone(stage: Stage) -> None:
    async with stage.guest("hopeless") as guest, stage.undisturbed():
        begin = stage.agent.mark()
        guest.send_signal(signal.SIGSTOP)
        await stage.agent.wait_for_record("vm.stalled", vm=guest.uuid, since=begin, timeout=5)
        await guest.kill()
        await stage.agent.wait_for_record("vm.gone", vm=guest.uuid, since=begin, timeout=2)
        assert (await stage.agent.metrics()).names_of(guest.uuid) == []
        assert not [*stage.agent.find_records("vm.recovered", vm=guest.uuid)]


async def test_readyz_says_why_not_when_no_monitor_is_up(folder: Path) -> None:
    async with Guest(folder, "only") as guest:
        holder = hold(guest)
        async with AgentProcess(folder, TIMING | {"monitors": [{"dial": f"{folder}/*.qmp"}]}) as agent:

            async def says(status: int, text: str) -> None:
                async def does() -> bool:
                    return await agent.get("/readyz") == (status, f"{text}\n")

                await until(does, 5)

            with holder:
                await says(503, "none of 1 monitors is up: 1 busy")
                assert await agent.get("/healthz") == (200, "ok\n")
            await says(200, "ready")
            await guest.kill()
            await agent.wait_for_record("vm.gone", vm=guest.uuid)
            await says(200, "ready")  # a socket that a VM left behind is no VM that is missing
