"""The guests and the agent of the tests of the page and the terminal."""

from contextlib import AsyncExitStack
from pathlib import Path
from typing import Final

from agent.cli.demo.guest import Guest, GuestKind, GuestOptions
from tests.lab.agent_process import AgentProcess

_QUICK: Final = {
    "intervals": {"poll": "1s", "guest_memory": "1s"},
    "allow": {"guest_stats_interval": "1s"},
    "alerts": {"write_threshold": {"levels": ["1%", "99%"]}},
}


async def watch_guests(running: AsyncExitStack, folder: Path, name: str) -> tuple[AgentProcess, Guest, Guest, Guest]:
    """Start a writer, a guest of that name, a Linux and an agent; wait for the Linux's memory statistics."""
    writer = Guest(folder, "db-1", GuestOptions(kind=GuestKind.WRITER))
    hostile = Guest(folder, "hostile", GuestOptions(extra=("-name", f"guest={name}")))
    linux = Guest(folder, "web-1", GuestOptions(kind=GuestKind.LINUX))
    for guest in (writer, hostile, linux):
        await running.enter_async_context(guest)
    agent = await running.enter_async_context(
        AgentProcess(folder, {"monitors": [{"dial": f"{folder}/*.qmp"}], **_QUICK})
    )
    await agent.wait_for_record("sample.guest_memory")
    return agent, writer, hostile, linux
