"""File systems of a real Linux guest that another client freezes through the real guest agent, and thaws much later.

`QMP_AGENT_FREEZE_SECONDS=120` makes the freeze as long as that of a slow backup.
"""

import os
import time
from collections import Counter
from pathlib import Path
from typing import Any, Final

from agent.cli.demo.guest import Guest, GuestKind, GuestOptions
from tests.lab.agent_process import AgentProcess, Scrape, record_time
from tests.lab.guest_agent_probe import GuestAgentProbe
from tests.lab.guest_shell import guest_shell
from tests.lab.waiting import until

FREEZE_SECONDS: Final = float(os.environ.get("QMP_AGENT_FREEZE_SECONDS", "4"))
STATUS_POLLS: Final = 5
NAMES: Final = ("filesystems", "load", "cpu", "disks", "network", "users", "os", "clock", "freeze")
PERMITTED: Final = {"guest-fsfreeze-status", "guest-info"}
"""Commands that a guest agent executes while the file systems are frozen, besides the synchronization."""


def config(folder: Path) -> dict[str, Any]:
    """Return a config that visits the channel for each round of queries, so that another client can use it in between."""
    return {
        "monitors": [{"dial": f"{folder}/*.qmp"}],
        "intervals": {"poll": "500ms"},
        "timeouts": {"response": "60s"},  # a QEMU without CPU time answers late
        "guest_agent": {
            "enabled": True,
            "channels": [{"socket": f"{folder}/{{name}}.qga", "shared": True}],
            "intervals": dict.fromkeys(NAMES, "500ms"),
        },
        "alerts": {"guests": {"max_frozen_time": f"{FREEZE_SECONDS / 2:g}s"}},
    }


def commands_of(scrape: Scrape) -> Counter[str]:
    """Return how many times each command was sent to guest agents."""
    counts: Counter[str] = Counter()
    for (name, labels), value in scrape.values.items():
        if name == "qmp_agent_guest_agent_commands_total":
            counts[dict(labels)["command"]] += int(value)
    return counts


async def execute(guest: Guest, command: str) -> Any:
    """Execute a command over the guest's channel, as a manager does, between two visits of the agent."""
    async with GuestAgentProbe(guest.folder / f"{guest.name}.qga") as probe:
        return await probe.execute(command)


async def test_frozen_file_systems_are_an_alert_and_nothing_else_is_asked_until_the_thaw(folder: Path) -> None:
    options = GuestOptions(kind=GuestKind.LINUX, guest_agent=True, guest_shell=True, pause_seconds=5)
    async with Guest(folder, "web-1", options) as guest:
        await guest.wait_until_booted()
        async with guest_shell(folder, "web-1") as shell, AgentProcess(folder, config(folder)) as agent:
            await agent.wait_for_record("sample.guest_clock", vm=guest.uuid)
            assert await execute(guest, "guest-fsfreeze-freeze") == 1
            await shell.run("dd if=/dev/zero of=/data/blocked bs=1M count=4 2>/dev/null &")
            frozen = await agent.wait_for_record("sample.guest_freeze", vm=guest.uuid, frozen=True)
            await check_freeze(agent, guest, since=record_time(frozen))
            alert = await agent.wait_for_record("alert.guest_frozen", vm=guest.uuid, state="firing")
            assert abs(alert["data"]["frozen_since_timestamp_seconds"] - record_time(frozen)) < 1
            assert record_time(alert) - record_time(frozen) >= FREEZE_SECONDS / 2

            mark, blocked = agent.mark(), await agent.metrics()
            assert await execute(guest, "guest-fsfreeze-thaw") == 1
            await agent.wait_for_record("alert.guest_frozen", vm=guest.uuid, since=mark, state="resolved")
            before = blocked.value("qemu_guest_filesystem_used_bytes", mountpoint="/data") or 0

            async def has_written() -> bool:
                used = (await agent.metrics()).value("qemu_guest_filesystem_used_bytes", mountpoint="/data") or 0
                return used >= before + (4 << 20)

            await until(has_written, 180)  # the write that waited for the thaw
            scrape = await agent.metrics()
            assert scrape.value("qemu_guest_freeze_frozen", vm_uuid=guest.uuid) == 0
            assert last_response(scrape) > last_response(blocked)
            alerts = [record["type"] for record in agent.records() if record["type"].startswith("qemu.alert.")]
            assert set(alerts) == {"qemu.alert.guest_frozen"}
            assert len(alerts) == 2


def last_response(scrape: Scrape) -> float:
    """Return the time of the last values, as the series has it."""
    value = scrape.value("qemu_guest_agent_last_response_timestamp_seconds")
    assert value is not None
    return value


async def check_freeze(agent: AgentProcess, guest: Guest, since: float) -> None:
    """Check during the whole freeze that only permitted commands are sent, and that the old values are shown with their old time."""
    first = await agent.metrics()
    asked, answered = commands_of(first), last_response(first)
    assert answered <= since

    async def is_over() -> bool:
        scrape = await agent.metrics()
        assert {name for name in commands_of(scrape) if commands_of(scrape)[name] > asked[name]} <= PERMITTED
        assert last_response(scrape) == answered
        assert scrape.matching("qemu_guest_filesystem_used_bytes", mountpoint="/data")
        assert scrape.value("qemu_guest_freeze_frozen") == 1
        assert scrape.value("qemu_guest_agent_session_state", state="up") == 1
        assert scrape.value("qemu_vm_up", vm_uuid=guest.uuid) == 1
        polls = commands_of(scrape)["guest-fsfreeze-status"] - asked["guest-fsfreeze-status"]
        return polls >= STATUS_POLLS and time.time() - since >= FREEZE_SECONDS

    await until(is_over, FREEZE_SECONDS + 60)

    def is_polled() -> bool:
        blocks = [record_time(record) for record in agent.find_records("sample.block", vm=guest.uuid)]
        return len([at for at in blocks if since <= at]) >= STATUS_POLLS

    await until(is_polled, 180)  # as before
