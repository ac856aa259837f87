"""The guests and the agent for tests of the web page and of `qmp-agent top`."""

from contextlib import AsyncExitStack
from pathlib import Path
from typing import Final

from agent.cli.demo.guest import Guest, GuestKind, GuestOptions
from tests.lab.agent_process import AgentProcess

_QUICK: Final = {
    "intervals": {"poll": "1s", "guest_memory": "1s"},
    "allow": {"guest_stats_interval": "1s"},
    "alerts": {"disks": {"levels": ["used 640KiB", "used 63MiB"]}, "guest_filesystems": {"levels": ["used 1KiB"]}},
    "guest_agent": {"enabled": True, "intervals": {"filesystems": "1s"}},
}


async def watch_guests(running: AsyncExitStack, folder: Path, name: str) -> tuple[AgentProcess, Guest, Guest, Guest]:
    """Start an agent and three guests: a writer, an idle guest with this name, and a Linux. Wait for the Linux's memory statistics."""
    # It writes so slowly that its disk is far from full, and only the first level is exceeded, as long as the tests run.
    writer = Guest(folder, "db-1", GuestOptions(kind=GuestKind.WRITER, write_kib=8))
    hostile = Guest(folder, "hostile", GuestOptions(extra=("-name", f"guest={name}")))
    linux = Guest(folder, "web-1", GuestOptions(kind=GuestKind.LINUX, guest_agent=True))
    for guest in (writer, hostile, linux):
        await running.enter_async_context(guest)
    agent = await running.enter_async_context(
        AgentProcess(folder, {"monitors": [{"dial": f"{folder}/*.qmp"}], **_QUICK})
    )
    await agent.wait_for_record("sample.guest_memory", timeout=600)  # after the Linux has booted
    return agent, writer, hostile, linux
