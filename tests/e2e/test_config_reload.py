"""Config reload at SIGHUP. An invalid config is reported and changes nothing. A valid config affects only the parts that it changes."""

import signal
from collections.abc import Callable
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import yaml

from tests.lab.agent_process import AgentProcess
from tests.lab.fake_qemu import FakeQemu
from tests.lab.waiting import until

UUIDS = {letter: f"{letter * 8}-1111-4111-8111-111111111111" for letter in "abcd"}
QUICK_CONFIG = {"poll": "100ms"}


class Host:
    """An agent, and scripted VMs in the directories `one` and `two`. Each VM has a letter as its name."""

    def __init__(self, folder: Path, stack: AsyncExitStack) -> None:
        self.folder = folder
        self.fakes: dict[str, FakeQemu] = {}
        self._stack = stack
        for name in ("one", "two"):
            (folder / name).mkdir()

    async def vm(self, place: str, letter: str) -> FakeQemu:
        fake = FakeQemu(self.folder / place / f"{letter}.qmp")
        fake.replies["query-uuid"] = {"UUID": UUIDS[letter]}
        fake.replies["query-name"] = {"name": letter}
        self.fakes[letter] = await self._stack.enter_async_context(fake)
        return fake

    async def agent(self, *patterns: str, **more: Any) -> AgentProcess:
        self.running = AgentProcess(self.folder, self._config(patterns, more))
        self._initial = yaml.safe_load(self.running.config.read_text())
        return await self._stack.enter_async_context(self.running)

    def _config(self, patterns: tuple[str, ...], more: dict[str, Any]) -> dict[str, Any]:
        return {
            "monitors": [{"dial": f"{self.folder}/{pattern}"} for pattern in patterns],
            "intervals": QUICK_CONFIG,
            **more,
        }

    async def reload(self, *patterns: str, **more: Any) -> None:
        """Write a new config, reload it, and wait until it is applied."""
        config = {**self._initial, **self._config(patterns, more)}
        before = await self.loaded_at()
        self.write(yaml.safe_dump(config))
        await self.until_reload(lambda loaded_at, successful: successful == 1 and loaded_at > before)

    def write(self, text: str) -> None:
        self.running.config.write_text(text)
        self.running.send_signal(signal.SIGHUP)

    async def loaded_at(self) -> float:
        at = (await self.running.metrics()).value("qmp_agent_config_last_reload_success_timestamp_seconds")
        assert at is not None
        return at

    async def until_reload(self, predicate: Callable[[float, float], bool]) -> None:
        """Wait until a predicate of two metrics holds: the time of the last successful reload, and whether the last reload succeeded."""

        async def satisfied() -> bool:
            successful = (await self.running.metrics()).value("qmp_agent_config_last_reload_successful")
            assert successful is not None
            return predicate(await self.loaded_at(), successful)

        await until(satisfied)


async def test_a_bad_config_changes_nothing_and_is_reported_until_a_good_one_is_loaded(folder: Path) -> None:
    async with AsyncExitStack() as stack:
        host = Host(folder, stack)
        fake = await host.vm("one", "a")
        agent = await host.agent("one/*.qmp")
        await agent.wait_for_record("vm.attached", vm="a")
        for bad, why in (("monitor: []\n", "monitors?"), ("monitors: [\n", "is not YAML"), ("", "should be a mapping")):
            host.write(bad)
            await host.until_reload(lambda _, successful: successful == 0)

            async def reported(why: str = why) -> bool:
                status, text = await agent.get("/readyz")
                return status == 200 and "config: reload failed" in text and "stays in use" in text and why in text

            await until(reported)
            await until(lambda why=why: why in agent.log)  # type: ignore[misc]
            polls = fake.count("query-blockstats")
            await fake.wait_for("query-blockstats", polls + 2)  # polling continues
        await host.reload("one/*.qmp")
        assert await agent.get("/readyz") == (200, "ready\n")
        assert fake.clients == 1
        assert [r["type"] for r in agent.records() if r["type"].startswith("qemu.vm.")] == ["qemu.vm.attached"]


async def test_a_reload_detaches_removed_vms_and_attaches_added_ones(folder: Path) -> None:
    async with AsyncExitStack() as stack:
        host = Host(folder, stack)
        kept, removed, added = [
            await host.vm(place, letter) for place, letter in (("one", "a"), ("two", "b"), ("one", "c"))
        ]
        agent = await host.agent("one/a.qmp", "two/*.qmp")
        for letter in "ab":
            await agent.wait_for_record("vm.attached", vm=letter)
        # Another entry finds the first VM now.
        await host.reload("one/*.qmp")
        await agent.wait_for_record("vm.attached", vm="c")
        detached = await agent.wait_for_record("vm.detached", vm="b")
        assert detached["data"]["reason"] == "the agent stops watching"
        await until(lambda: removed._client is None)
        assert (kept.clients, removed.clients, added.clients) == (1, 1, 1)
        # The removed VM is watched again after it is added back.
        await host.reload("one/*.qmp", "two/*.qmp")
        await until(lambda: removed.clients == 2)
        assert (kept.clients, added.clients) == (1, 1)
        assert not [*agent.find_records("vm.detached", vm="a")]
        assert not [*agent.find_records("vm.gone")]


async def test_new_intervals_and_allowed_changes_apply_to_attached_vms(folder: Path) -> None:
    async with AsyncExitStack() as stack:
        host = Host(folder, stack)
        fake = await host.vm("one", "a")
        fake.replies["migrate-set-capabilities"] = {}
        agent = await host.agent("one/*.qmp", intervals={"poll": "1h", "resync": "1d"})
        await agent.wait_for_record("vm.attached", vm="a")
        await fake.wait_for("query-blockstats")
        assert fake.count("migrate-set-capabilities") == 0
        await host.reload("one/*.qmp", allow={"migration_events": True})
        await fake.wait_for("migrate-set-capabilities")
        await fake.wait_for("query-blockstats", fake.count("query-blockstats") + 5)
        assert fake.clients == 1
        # After it is switched off, the command is not sent again.
        sent, queried = fake.count("migrate-set-capabilities"), fake.count("query-migrate-capabilities")
        await host.reload("one/*.qmp", allow={"migration_events": False})
        await fake.wait_for("query-migrate-capabilities", queried + 1)
        await fake.wait_for("query-blockstats", fake.count("query-blockstats") + 2)
        assert fake.count("migrate-set-capabilities") == sent


async def test_sections_that_need_a_restart_are_named_and_keep_their_values(folder: Path) -> None:
    async with AsyncExitStack() as stack:
        host = Host(folder, stack)
        await host.vm("one", "a")
        agent = await host.agent("one/*.qmp")
        await agent.wait_for_record("vm.attached", vm="a")
        await host.reload("one/*.qmp", host="other", web={"listen_address": "127.0.0.1:1"}, log={"level": "debug"})
        status, text = await agent.get("/readyz")
        assert status == 200
        assert text.splitlines()[1:] == [
            f"config section {name} has changed: restart the agent to apply it" for name in ("host", "web")
        ]
        assert (await agent.wait_for_record("sample.block", vm="a", since=agent.mark()))["host"] == "hv7"
