"""The config read again at SIGHUP: a bad one changes nothing and says so, a good one touches only what it changes."""

import signal
from collections.abc import Callable
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import yaml

from agent.cli.demo.guest import until
from tests.lab.agent_process import AgentProcess
from tests.lab.fake_qemu import FakeQemu

UUIDS = {letter: f"{letter * 8}-1111-4111-8111-111111111111" for letter in "abcd"}
QUICK = {"poll": "100ms"}


class Host:
    """An agent, and scripted VMs in folders `one` and `two` by letters."""

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
        self._first = yaml.safe_load(self.running.config.read_text())
        return await self._stack.enter_async_context(self.running)

    def _config(self, patterns: tuple[str, ...], more: dict[str, Any]) -> dict[str, Any]:
        return {"monitors": [{"dial": f"{self.folder}/{pattern}"} for pattern in patterns], "intervals": QUICK, **more}

    async def reload(self, *patterns: str, **more: Any) -> None:
        """Have another config taken."""
        new = {**self._first, **self._config(patterns, more)}
        before = await self.taken_at()
        self.write(yaml.safe_dump(new))
        await self.told(lambda values: values[1] == 1 and values[0] > before)

    def write(self, text: str) -> None:
        self.running.config.write_text(text)
        self.running.send_signal(signal.SIGHUP)

    async def taken_at(self) -> float:
        at = (await self.running.metrics()).value("qmp_agent_config_last_reload_success_timestamp_seconds")
        assert at is not None
        return at

    async def told(self, predicate: Callable[[tuple[float, float]], bool]) -> None:
        """Wait until the metrics of reloading are so: when a config was taken, and whether the last one was."""

        async def so() -> bool:
            good = (await self.running.metrics()).value("qmp_agent_config_last_reload_successful")
            assert good is not None
            return predicate((await self.taken_at(), good))

        await until(so, 10)


async def test_a_bad_config_changes_nothing_and_says_so_until_a_good_one_is_taken(folder: Path) -> None:
    async with AsyncExitStack() as stack:
        host = Host(folder, stack)
        fake = await host.vm("one", "a")
        agent = await host.agent("one/*.qmp")
        await agent.wait_for_record("vm.attached", vm="a")
        for bad, why in (("monitor: []\n", "monitors?"), ("monitors: [\n", "is not YAML"), ("", "keys and values")):
            host.write(bad)
            await host.told(lambda values: values[1] == 0)

            async def says(why: str = why) -> bool:
                status, text = await agent.get("/readyz")
                return status == 200 and "the config was not taken, the one before it stays" in text and why in text

            await until(says, 5)
            assert why in agent.log
            asked = fake.count("query-blockstats")
            await fake.wait_for("query-blockstats", asked + 2)  # it goes on as before
        await host.reload("one/*.qmp")
        assert await agent.get("/readyz") == (200, "ready\n")
        assert fake.clients == 1
        assert [r["type"] for r in agent.records() if r["type"].startswith("qemu.vm.")] == ["qemu.vm.attached"]


async def test_only_the_vms_that_a_config_leaves_out_are_detached_and_those_it_adds_attached(folder: Path) -> None:
    async with AsyncExitStack() as stack:
        host = Host(folder, stack)
        stays, leaves, comes = [
            await host.vm(place, letter) for place, letter in (("one", "a"), ("two", "b"), ("one", "c"))
        ]
        agent = await host.agent("one/a.qmp", "two/*.qmp")
        for letter in "ab":
            await agent.wait_for_record("vm.attached", vm=letter)
        # Another entry finds the first VM from now on.
        await host.reload("one/*.qmp")
        await agent.wait_for_record("vm.attached", vm="c")
        detached = await agent.wait_for_record("vm.detached", vm="b")
        assert detached["data"]["reason"] == "the agent stops watching"
        await until(lambda: leaves._client is None, 5)
        assert (stays.clients, leaves.clients, comes.clients) == (1, 1, 1)
        # And back: a VM that was let go is watched again.
        await host.reload("one/*.qmp", "two/*.qmp")
        await until(lambda: leaves.clients == 2, 5)
        assert (stays.clients, comes.clients) == (1, 1)
        assert not [*agent.find_records("vm.detached", vm="a")]
        assert not [*agent.find_records("vm.gone")]


async def test_other_intervals_and_changes_hold_for_vms_that_are_attached_already(folder: Path) -> None:
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
        # Switched off again, nothing of the kind is sent any more.
        sent, looked = fake.count("migrate-set-capabilities"), fake.count("query-migrate-capabilities")
        await host.reload("one/*.qmp", allow={"migration_events": False})
        await fake.wait_for("query-migrate-capabilities", looked + 1)
        await fake.wait_for("query-blockstats", fake.count("query-blockstats") + 2)
        assert fake.count("migrate-set-capabilities") == sent


async def test_what_takes_a_restart_is_named_and_stays_as_it_was(folder: Path) -> None:
    async with AsyncExitStack() as stack:
        host = Host(folder, stack)
        await host.vm("one", "a")
        agent = await host.agent("one/*.qmp")
        await agent.wait_for_record("vm.attached", vm="a")
        await host.reload("one/*.qmp", host="other", prometheus={"listen": "127.0.0.1:1"}, log={"level": "debug"})
        status, text = await agent.get("/readyz")
        assert status == 200
        assert text.splitlines()[1:] == [
            f"{name}: its change in the config takes a restart" for name in ("host", "prometheus")
        ]
        assert (await agent.wait_for_record("sample.block", vm="a", since=agent.mark()))["host"] == "hv7"
