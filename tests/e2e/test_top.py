"""`qmp-agent top` on a terminal, with a real agent and real guests."""

import asyncio
import json
import re
import tempfile
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import pytest
import pytest_asyncio

from agent.cli.demo.guest import Guest
from tests.lab.agent_process import AgentProcess, run_command
from tests.lab.machine import free_port
from tests.lab.page_guests import watch_guests
from tests.lab.terminal import Terminal
from tests.lab.waiting import DEADLINE_SECONDS, until

pytestmark = pytest.mark.asyncio(loop_scope="module")

HOSTILE: Final = "evil\x1b[31m\x07\x1b]0;pwned\x07"


@dataclass(frozen=True, slots=True)
class Environment:
    """An agent that watches three guests: a writer, a guest with a hostile name, and a Linux."""

    agent: AgentProcess
    writer: Guest
    linux: Guest

    async def wait_until_known(self, since: int) -> None:
        """Wait until the agent knows all that the tests expect of the guests.

        Args:
            since: When the agent was started, as `AgentProcess.mark` returned it.
        """
        await self.agent.wait_for_record("alert.write_threshold", vm=self.writer.uuid, since=since, state="firing")
        for family in ("balloon", "guest_memory", "guest_filesystem"):
            await self.agent.wait_for_record(f"sample.{family}", vm=self.linux.uuid, since=since)

        async def has_rates() -> bool:
            vms = json.loads((await self.agent.get("/overview"))[1])["vms"]
            return len(vms) == 3 and all("writes" in vms[guest.uuid]["now"] for guest in (self.writer, self.linux))

        await until(has_rates)

    def top(self, *arguments: str, columns: int = 120, rows: int = 30) -> Terminal:
        """Return a terminal that runs `qmp-agent top` for this agent."""
        return Terminal("top", "--url", self.agent.url, "--interval", "300ms", *arguments, columns=columns, rows=rows)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def environment() -> AsyncIterator[Environment]:
    with tempfile.TemporaryDirectory(prefix="qmp-") as path:
        async with AsyncExitStack() as running:
            agent, writer, _, linux = await watch_guests(running, Path(path), HOSTILE)
            environment = Environment(agent, writer, linux)
            await environment.wait_until_known(0)
            yield environment


async def test_every_vm_has_a_row_with_its_rates(environment: Environment) -> None:
    async with environment.top() as top:
        await top.wait_for_texts("CPU%*", "db-1", "web-1", "evil", "3 VMs", "monitors: 3 up")
        head = top.find_row("CPU%").split()
        titles = ["VM", "STATE", "ALERTS", "CPU%*", "STEAL%", "RD/s", "WR/s", "LAT", "MEM", "FREE", "FULL", "GUEST%"]
        assert head == [*titles, "MEM%", "RIOPS", "WIOPS"]
        rates = r"db-1 +running +1 +[\d.]+ +[\d.]+ +0 +[\d.]+[KM] "
        await until(lambda: re.match(rates, top.find_row("db-1")))
        await until(lambda: re.search(r" \d+(\.\d)?M +\d+(\.\d)?[smhd] ", top.find_row("db-1")))


async def test_a_hostile_name_cannot_control_the_terminal(environment: Environment) -> None:
    async with environment.top() as top:
        await top.wait_for_texts("evil\ufffd[31m\ufffd\ufffd]0;pwned\ufffd")
        assert top.screen.title != "pwned"


async def test_keys_sort_reverse_and_filter(environment: Environment) -> None:
    async with environment.top() as top:
        await top.wait_for_texts("db-1")

        def order() -> list[str]:
            return [row.split()[0] for row in top.screen.display if re.match(r"(db-1|web-1|evil)", row)]

        top.type("n")
        await top.wait_for_texts("VM*")
        await until(lambda: [name[:4] for name in order()] == ["db-1", "evil", "web-"])
        top.type("R")
        await until(lambda: [name[:4] for name in order()] == ["web-", "evil", "db-1"])
        top.type(">")
        await top.wait_for_texts("STATE*")
        top.type("/we")
        await top.wait_for_texts("Filter: we_")
        await until(lambda: order() == ["web-1"])
        top.type("\n")
        await top.wait_for_texts("(filter: we)")
        top.type("/\x1b")
        await until(lambda: len(order()) == 3)


async def test_enter_opens_a_vm_and_escape_goes_back(environment: Environment) -> None:
    async with environment.top() as top:
        await top.wait_for_texts("db-1")
        top.type("n\x1b[B\x1b[B\x1b[A\x1b[A")
        top.type("\n")
        await top.wait_for_texts(
            environment.writer.uuid,
            "DISK",
            "disk0",
            "used 640KiB exceeded",
            "warning: write_threshold disk0 past used 640KiB",
        )
        await top.wait_for_texts("block disk0", "writes_total=")
        top.type("\x1b")
        await top.wait_for_texts("VM*", "web-1")


async def test_columns_follow_the_size_of_the_terminal(environment: Environment) -> None:
    async with environment.top() as top:
        await top.wait_for_texts("ALERTS")
        top.resize(40, 10)
        await until(lambda: "WR/s" not in "".join(top.screen.display) and top.find_row("db-1"))
        assert all(len(row) <= 40 for row in top.screen.display)
        top.resize(120, 30)
        await top.wait_for_texts("ALERTS", "db-1")


async def test_q_quits(environment: Environment) -> None:
    async with environment.top() as top:
        await top.wait_for_texts("db-1")
        top.type("q")
        async with asyncio.timeout(DEADLINE_SECONDS):
            assert await top.process.wait() == 0


async def test_top_reports_a_lost_agent_and_reconnects(environment: Environment) -> None:
    async with environment.top() as top:
        await top.wait_for_texts("db-1")
        await environment.agent.kill()
        await top.wait_for_texts("no agent answers at", "db-1")
        restart = environment.agent.mark()
        await environment.agent.start()
        await until(lambda: not top.find_row("no agent answers") and top.find_row("db-1"))
    await environment.wait_until_known(restart)


async def test_once_prints_a_table(environment: Environment) -> None:
    ended = await run_command("top", "--once", "--url", environment.agent.url)
    assert (ended.status, ended.log) == (0, "")
    head, *rows = ended.out.splitlines()
    assert head.split()[:4] == ["VM", "STATE", "CPU%*", "RD/s"] or head.split()[0] == "VM"
    assert len(rows) == 3
    assert "\x1b" not in ended.out


async def test_once_prints_lists_filtered_sorted_and_as_json(environment: Environment) -> None:
    url = ("--once", "--url", environment.agent.url)
    ended = await run_command("top", *url, "--json", "--filter", "db-1 alert:write_threshold", "--sort=-name")
    assert ended.status == 0
    shown = json.loads(ended.out)
    assert [vm["name"] for vm in shown["vms"]] == ["db-1"]
    assert {"alerts", "pools", "monitors", "agent"} <= shown.keys()
    ended = await run_command("top", *url, "--json", "--vm", "web-1")
    one = json.loads(ended.out)
    assert one["vm"]["uuid"] == one["detail"]["uuid"] == environment.linux.uuid
    for view, text in (("alerts", "write_threshold"), ("monitors", "db-1.qmp"), ("storage", "POOL")):
        ended = await run_command("top", *url, "--view", view)
        assert text in ended.out
    ended = await run_command("top", *url, "--sort", "size")
    assert ended.status == 1
    assert "no such column: choose from name, state" in ended.log
    ended = await run_command("top", "--json", "--url", environment.agent.url)
    assert (ended.status, ended.log) == (1, "qmp-agent: --json needs --once\n")


async def test_once_prints_a_vm_and_rejects_an_unknown_name(environment: Environment) -> None:
    by_name = await run_command("top", "--once", "--url", environment.agent.url, "--vm", "web-1")
    assert by_name.status == 0
    assert environment.linux.uuid in by_name.out
    assert "balloon" in by_name.out
    unknown = await run_command("top", "--once", "--url", environment.agent.url, "--vm", "absent")
    assert (unknown.status, unknown.out, unknown.log) == (1, "", "qmp-agent: the agent watches no VM named absent\n")


async def test_a_missing_terminal_or_agent_is_reported() -> None:
    url = f"http://127.0.0.1:{free_port()}"
    ended = await run_command("top", "--url", url)
    assert (ended.status, ended.out) == (1, "")
    assert ended.log.startswith("qmp-agent: standard input and output must be a terminal; --once")
    ended = await run_command("top", "--once", "--url", url)
    assert (ended.status, ended.out) == (1, "")
    assert ended.log.startswith(f"qmp-agent: no agent answers at {url}: ")
