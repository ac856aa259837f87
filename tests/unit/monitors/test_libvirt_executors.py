"""Commands for a domain: an unreadable answer of libvirt fails the commands that need this answer, and no others."""

import asyncio
import threading
from dataclasses import replace
from typing import Any

import pytest

from agent.monitors.libvirt.connection_pool import ConnectionPool
from agent.monitors.libvirt.domain_connection import DomainConnection
from agent.monitors.libvirt.executors import (
    ConnectedLibvirtd,
    LibvirtCommandExecutor,
    PassthroughExecutor,
    TranslatingExecutor,
)
from agent.monitors.libvirt.lifecycle import LibvirtMigrationPhase
from agent.monitors.libvirt.stats_batcher import StatsBatcher
from agent.qmp.commands import AllowList, Command
from agent.qmp.errors import AmbiguousReplyError, CommandError, StalledError, UnreadableReplyError
from agent.session.identity_and_features import qemu_build_of
from tests.lab.scripted_libvirt import REFUSED, ScriptedDomain, ScriptedError, ScriptedLibrary, ScriptedQemuLibrary

pytestmark = pytest.mark.real_clock

XML = (
    "<domain><devices><disk type='file'><source file='/a' index='1'/><backingStore/><target dev='vda'/>"
    "<alias name='virtio-disk0'/></disk></devices></domain>"
)
STATS = {"state.state": 1, "block.0.name": "vda", "block.0.backingIndex": 1, "block.0.rd.reqs": 7}

UUID = Command("query-uuid")
STATUS = Command("query-status")
BLOCKSTATS = Command("query-blockstats")


@pytest.fixture
def library() -> ScriptedLibrary:
    return ScriptedLibrary()


def daemon_of(library: ScriptedLibrary) -> ConnectedLibvirtd:
    pool = ConnectionPool(library, "test")
    stats = StatsBatcher(library, pool)
    return ConnectedLibvirtd(library, ScriptedQemuLibrary(), pool, stats, read_only=False, passthrough=False)


async def results_of(executor: LibvirtCommandExecutor, *commands: Command) -> list[Any]:
    return await executor.execute(commands)


def translating_executor(library: ScriptedLibrary, **domain: Any) -> TranslatingExecutor:
    library.domains["a"] = ScriptedDomain("a", **{"xml": XML, "stats": STATS} | domain)
    return TranslatingExecutor(daemon_of(library), "a", "vm", lambda: LibvirtMigrationPhase.NONE)


async def test_libvirts_answers_become_results_of_commands(library: ScriptedLibrary) -> None:
    uuid, status, (disk,) = await results_of(translating_executor(library), UUID, STATUS, BLOCKSTATS)
    assert uuid == {"UUID": "a"}
    assert status == {"status": "running", "running": True}
    assert disk["stats"] == {"rd_operations": 7}


@pytest.mark.parametrize(
    "xml", ["<domain>", "<!DOCTYPE x><domain/>", UnicodeDecodeError("utf-8", b"\xff", 0, 1, "invalid start byte")]
)
async def test_unreadable_xml_fails_the_commands_that_need_devices(library: ScriptedLibrary, xml: Any) -> None:
    executor = translating_executor(library, xml=xml)
    uuid, status, blockstats = await results_of(executor, UUID, STATUS, BLOCKSTATS)
    assert (uuid, status["status"]) == ({"UUID": "a"}, "running")
    assert isinstance(blockstats, UnreadableReplyError)
    library.domains["a"].xml = XML
    (blockstats,) = await results_of(executor, BLOCKSTATS)
    assert blockstats[0]["qdev"] == "virtio-disk0"


@pytest.mark.parametrize(
    ("commands", "error_type"),
    [([STATUS], UnreadableReplyError), ([STATUS, BLOCKSTATS], AmbiguousReplyError)],
    ids=["one group", "two groups"],
)
async def test_unreadable_statistics_of_several_groups_are_not_the_fault_of_one_command(
    library: ScriptedLibrary, commands: list[Command], error_type: type[Exception]
) -> None:
    executor = translating_executor(library, stats=UnicodeDecodeError("utf-8", b"\xff", 0, 1, "invalid start byte"))
    assert {type(result) for result in await results_of(executor, *commands)} == {error_type}


async def test_refused_statistics_fail_the_commands_that_need_them(library: ScriptedLibrary) -> None:
    executor = translating_executor(library, stats=ScriptedError("cannot decode the reply", REFUSED))
    uuid, status, capabilities = await results_of(executor, UUID, STATUS, Command("query-migrate-capabilities"))
    assert uuid == {"UUID": "a"}
    assert isinstance(status, CommandError)
    assert isinstance(capabilities, list)


@pytest.mark.parametrize("stats", [STATS, ScriptedError("cannot decode the reply", REFUSED)])
async def test_no_threshold_is_set_where_libvirt_has_not_read_the_slot(library: ScriptedLibrary, stats: Any) -> None:
    threshold = Command("block-set-write-threshold", {"node-name": "libvirt-1-storage", "write-threshold": 1 << 20})
    executor = translating_executor(library, stats=stats)
    (result,) = await results_of(executor, threshold)
    assert isinstance(result, CommandError)
    assert library.domains["a"].thresholds == []
    library.domains["a"].stats = STATS | {"block.0.capacity": 1 << 30}
    assert await results_of(executor, threshold) == [{}]
    assert library.domains["a"].thresholds == [("vda[1]", 1 << 20)]


async def test_refused_statistics_of_one_domain_do_not_affect_others(library: ScriptedLibrary) -> None:
    library.domains |= {
        "good": ScriptedDomain("good", stats=STATS),
        "bad": ScriptedDomain("bad", stats=ScriptedError("cannot decode the reply", REFUSED)),
    }
    stats = daemon_of(library).stats
    # The second and the third request share a call.
    first, good, bad = await asyncio.gather(
        stats.fetch("good", library.VIR_DOMAIN_STATS_STATE),
        stats.fetch("good", library.VIR_DOMAIN_STATS_STATE),
        stats.fetch("bad", library.VIR_DOMAIN_STATS_STATE),
        return_exceptions=True,
    )
    assert first == good == STATS
    assert isinstance(bad, CommandError)


@pytest.mark.parametrize(("passthrough", "version"), [(True, "5.2.1"), (False, "")])
async def test_the_version_is_that_of_the_running_qemu_or_unknown(
    library: ScriptedLibrary, *, passthrough: bool, version: str
) -> None:
    reply = '{"return":{"qemu":{"micro":1,"minor":2,"major":5},"package":"Debian"}}'
    library.domains["a"] = ScriptedDomain("a", replies={"query-version": reply})
    host = replace(daemon_of(library), passthrough=passthrough)
    connection = DomainConnection(
        host, "a", "vm", AllowList(), lambda _: None, None, lambda: LibvirtMigrationPhase.NONE
    )
    await connection.read_version(10)
    assert connection.greeting is not None
    assert qemu_build_of(connection.greeting).version == version
    connection.close()


async def test_a_stall_names_the_command_that_hangs(library: ScriptedLibrary) -> None:
    hanging, release = threading.Event(), threading.Event()

    class HangingQemuLibrary(ScriptedQemuLibrary):
        def qemuMonitorCommand(self, domain: ScriptedDomain, request: str, flags: int) -> str:  # noqa: N802 - libvirt's name
            if "query-blockstats" in request:
                hanging.set()
                release.wait(60)
            return super().qemuMonitorCommand(domain, request, flags)

    replies = dict.fromkeys(("query-status", "query-blockstats"), '{"return":{}}')
    library.domains["a"] = ScriptedDomain("a", replies=replies)
    daemon = replace(daemon_of(library), qemu=HangingQemuLibrary(), passthrough=True)
    connection = DomainConnection(
        daemon, "a", "vm", AllowList(), lambda _: None, None, lambda: LibvirtMigrationPhase.NONE
    )
    with pytest.raises(StalledError, match="no reply from libvirt to query-blockstats within"):
        await connection.execute([STATUS, BLOCKSTATS, STATUS], deadline=5.0)
    assert hanging.is_set()
    release.set()
    await connection.wait_idle()
    connection.close()


@pytest.mark.parametrize("reply", ['{"return":[{"device":"d","locked":false,}]}', '{"return":{"mbps":nan}}', "[]", ""])
async def test_an_unreadable_reply_of_qemu_fails_its_command_alone(library: ScriptedLibrary, reply: str) -> None:
    replies = {"query-status": '{"return":{"status":"running"},"id":"libvirt-9"}', "query-blockstats": reply}
    library.domains["a"] = ScriptedDomain("a", replies=replies)
    executor = PassthroughExecutor(daemon_of(library), "a", AllowList())
    status, blockstats = await results_of(executor, STATUS, BLOCKSTATS)
    assert status == {"status": "running"}
    assert isinstance(blockstats, UnreadableReplyError)
