"""The events that `qmp-agent demo` provokes, on a machine that is too busy for its guests."""

import asyncio
from pathlib import Path
from typing import Any

from agent.cli.demo.demo_run import _provoke_events
from agent.cli.demo.guest import Guest
from tests.lab.waiting import until


class SlowGuest(Guest):
    """A guest that accepts commands, and neither boots nor sends an event in time."""

    def __init__(self, name: str) -> None:
        super().__init__(Path("/nowhere"), name)
        self.commands: list[str] = []

    async def wait_until_booted(self, *_: object, **__: object) -> None:
        raise TimeoutError

    async def wait_for_event(self, *_: object, **__: object) -> dict[str, Any]:
        raise TimeoutError

    async def highest_written_offset(self) -> int:
        return 0

    async def command(self, command: str, /, **_: Any) -> Any:
        self.commands.append(command)


async def test_the_demo_continues_without_an_event_that_does_not_arrive() -> None:
    web, db = SlowGuest("web-1"), SlowGuest("db-1")
    events = asyncio.create_task(_provoke_events(web, db))
    await until(lambda: web.commands or events.done(), 60)
    assert not events.done()
    events.cancel()
    assert db.commands == ["block-set-write-threshold", "stop", "cont"]
    assert web.commands == ["balloon"]
