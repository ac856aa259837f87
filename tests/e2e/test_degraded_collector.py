"""A collector is off while QEMU's replies to it cannot be parsed. The agent reports this, the VM stays attached, and it recovers later."""

from pathlib import Path
from typing import Final

from tests.lab.agent_process import AgentProcess
from tests.lab.fake_qemu import FakeQemu
from tests.lab.scripted_peer import TIMEOUT_SECONDS
from tests.lab.waiting import until

SERIES: Final = "qmp_agent_collector_degraded"


async def test_a_collector_with_an_unreadable_answer_is_reported_everywhere(folder: Path) -> None:
    config = {"monitors": [{"dial": f"{folder}/*.qmp"}], "intervals": {"poll": "200ms", "resync": "1s"}}
    fake = FakeQemu(folder / "vm1.qmp")
    fake.replies["query-block"] = b'{"return":[{"device":"d","locked":false,}]}\r\n'
    async with fake, AgentProcess(folder, config) as agent:

        async def collectors_off() -> list[str]:
            scrape = await agent.metrics()
            return [labels["collector"] for labels, value in scrape.matching(SERIES) if value == 1]

        await until(collectors_off, TIMEOUT_SECONDS)
        names = await collectors_off()
        _, overview = await agent.get("/overview")
        status, ready = await agent.get("/readyz")
        assert status == 200
        for name in names:
            assert f"collector {name} is off: " in ready
            assert f'"collector":"{name}"' in overview
        assert (await agent.metrics()).matching("qemu_vm_up")[0][1] == 1
        assert fake.clients == 1
        del fake.replies["query-block"]  # answers from the transcript from here on

        async def has_recovered() -> bool:
            return not await collectors_off()

        await until(has_recovered)
        assert "is off" not in (await agent.get("/readyz"))[1]
