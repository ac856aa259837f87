"""Compares the figures of a real guest agent in the Linux guest with figures that a shell in the guest reads."""

import re

from tests.lab.agent_process import AgentProcess
from tests.lab.guest_shell import GuestShell


async def check_figures(agent: AgentProcess, shell: GuestShell, uuid: str) -> None:
    """Assert that the figures of a guest are those of `df`, `uname`, `ifconfig` and /proc/stat in it, and of /proc/loadavg if known."""
    received = re.compile(r"RX packets:(\d+).*TX packets:(\d+)", re.DOTALL)
    before = received.search(await shell.run("ifconfig eth0"))
    await agent.wait_for_record("sample.guest_clock", vm=uuid)
    mark = agent.mark()
    (filesystem, system, cpu, interface, disk, address) = [
        (await agent.wait_for_record(f"sample.guest_{family}", vm=uuid, since=since))["data"]
        for family, since in (
            ("filesystem", mark),
            ("os", 0),
            ("cpu", mark),
            ("interface", mark),
            ("disk", mark),
            ("address", 0),
        )
    ]
    total, used, available = map(int, (await shell.run("df -k /data | tail -1")).split()[1:4])
    assert (filesystem["mountpoint"], filesystem["device"], filesystem["type"]) == ("/data", "vdb", "ext4")
    assert filesystem["used_bytes"] == used * 1024
    assert filesystem["available_bytes"] == available * 1024
    assert filesystem["size_bytes"] <= total * 1024, "without the reserve of root"
    release, machine, name = (await shell.run("uname -r; uname -m; uname -n")).split()
    assert (system["kernel"], system["machine"], system["hostname"]) == (release, machine, name)
    assert system["name"] == "Busybox, the guest of qmp-agent's demo"
    user = int((await shell.run("head -1 /proc/stat")).split()[1]) / 100
    assert 0 < cpu["user_seconds_total"] <= user
    after = received.search(await shell.run("ifconfig eth0"))
    assert before is not None
    assert after is not None
    assert int(before[1]) <= interface["rx_packets_total"] <= int(after[1])
    assert int(before[2]) <= interface["tx_packets_total"] <= int(after[2])
    assert address["ipv4"] == "10.0.2.15"
    assert disk["device"] in ("vda", "vdb")
    missing = await agent.wait_for_record("sample.guest_agent_session", vm=uuid, state="up")
    if "guest-get-load" not in missing["data"]["missing_commands"]:
        await check_load(agent, shell, uuid)


async def check_load(agent: AgentProcess, shell: GuestShell, uuid: str) -> None:
    """Assert that the load is that of /proc/loadavg. The kernel computes it every five seconds."""
    names = ("average_1m", "average_5m", "average_15m")
    for _ in range(20):  # on a busy host, a load can rise and fall between the two readings
        before = (await shell.run("cat /proc/loadavg")).split()[:3]
        load = (await agent.wait_for_record("sample.guest_load", vm=uuid, since=agent.mark()))["data"]
        after = (await shell.run("cat /proc/loadavg")).split()[:3]
        if before == after:
            break
    for name, first, last in zip(names, before, after, strict=True):
        low, high = sorted((float(first), float(last)))
        assert low - 0.01 <= load[name] <= high + 0.01
