"""Two real QEMUs run with one UUID. The agent watches both, and reports the clash in its log, in /readyz and by an alert."""

from pathlib import Path

from tests.lab.agent_process import AgentProcess
from tests.lab.fixtures import StartGuest
from tests.lab.waiting import until


async def test_two_vms_with_one_uuid_are_watched_and_their_clash_is_reported_and_ends(
    start_guest: StartGuest, folder: Path
) -> None:
    first = await start_guest("first")
    clone = await start_guest("clone", identity=first.uuid)
    config = {"monitors": [{"dial": f"{folder}/*.qmp"}], "intervals": {"poll": "500ms"}}
    async with AgentProcess(folder, config) as agent:
        for guest in (first, clone):
            await agent.wait_for_record("vm.attached", vm=guest.name)
        text = f"UUID clash: {clone.monitor}, {first.monitor}: several VMs run with UUID {first.uuid}"

        async def is_ready(*, with_clash: bool) -> bool:
            status, ready = await agent.get("/readyz")
            assert status == 200
            return (text in ready) is with_clash

        await until(lambda: is_ready(with_clash=True))
        await agent.wait_for_record("alert.uuid_clash", state="firing")
        firing = f"alert uuid_clash firing: {clone.monitor}, {first.monitor}"
        await until(lambda: firing in agent.log)
        assert agent.log.count(firing) == 1
        await clone.stop()
        await until(lambda: is_ready(with_clash=False))
        await agent.wait_for_record("alert.uuid_clash", state="resolved")
        assert [*agent.find_records("vm.gone", vm=first.name)] == []
