"""The table of collectors: which VMs each applies to, and when it is polled."""

import importlib
import pkgutil

import pytest

from agent import collectors
from agent.collectors import ALL_COLLECTORS, Collector, PollIntervals, VmFacts
from agent.collectors.base import VirtioDisk
from agent.collectors.guest import GUEST_COLLECTORS
from agent.host.types import ProcessOrThread, VmHostInterface
from agent.model.metrics import FAMILIES
from agent.model.metrics.block import BLOCK_SPACE
from agent.model.metrics.block_stall import BLOCK_STALL
from agent.model.metrics.guest import GUEST_AGENT_SESSION
from agent.model.metrics.host_resources import HOST, HOST_HUGEPAGES
from agent.model.metrics.identity import IDENTITY
from agent.model.metrics.storage_pool import BLOCK_STORAGE, POOL

BY_NAME = {collector.name: collector for collector in ALL_COLLECTORS}
INTERVALS = PollIntervals(poll=10, guest_memory=30, migrations_and_jobs=1, resync=300)


@pytest.mark.parametrize("status", ["none", "completed", "failed", "cancelled"])
def test_an_ended_migration_is_polled_only_without_migration_events(status: str) -> None:
    samples = list(BY_NAME["migration"].collect(({"status": status},)))
    assert BY_NAME["migration"].next_poll_delay(samples, VmFacts(migration_events=True), INTERVALS) is None
    assert BY_NAME["migration"].next_poll_delay(samples, VmFacts(migration_events=False), INTERVALS) == 10


@pytest.mark.parametrize(
    "status", ["setup", "active", "cancelling", "failing", "pre-switchover", "device", "teleporting", ""]
)
@pytest.mark.parametrize("events", [True, False])
def test_a_migration_in_any_other_state_is_polled_each_second(status: str, events: bool) -> None:  # noqa: FBT001
    samples = list(BY_NAME["migration"].collect(({"status": status},)))
    assert BY_NAME["migration"].next_poll_delay(samples, VmFacts(migration_events=events), INTERVALS) == 1


def test_guest_memory_is_polled_no_more_often_than_the_guest_updates_it() -> None:
    delay = BY_NAME["guest_memory"].next_poll_delay
    assert delay((), VmFacts("/b", guest_stats_seconds=5), INTERVALS) == 30
    assert delay((), VmFacts("/b", guest_stats_seconds=90), INTERVALS) == 90
    assert delay((), VmFacts("/b", guest_stats_seconds=0), INTERVALS) is None


def test_only_disks_are_polled_from_qemu_at_an_interval() -> None:
    quiet = VmFacts("/b", guest_stats_seconds=0, migration_events=True)
    delays = {c.name: c.next_poll_delay((), quiet, INTERVALS) for c in ALL_COLLECTORS if not c.reads_only_host_files}
    assert delays == dict.fromkeys(delays) | {"block": 10}


def test_host_collectors_read_files_at_each_poll_and_send_no_command() -> None:
    host_only = [c for c in ALL_COLLECTORS if c.reads_only_host_files]
    assert [c.name for c in host_only] == ["vcpu", "iothread", "process", "cgroup", "net"]
    task, same_netns, far = ProcessOrThread(5), VmHostInterface("tap0"), VmHostInterface("tap1", same_netns=False)
    facts = VmFacts("/b", 5, process=task, vcpus=(task,), iothreads=(task,), cgroup="/c", interfaces=(same_netns, far))
    assert all(
        c.files(facts) and not c.commands(facts) and c.next_poll_delay((), facts, INTERVALS) == 10 for c in host_only
    )
    assert not [c.name for c in ALL_COLLECTORS if c.files(VmFacts("/b", 5))]


COLLECTORS_OF_ALL_VMS = {collector.name for collector in ALL_COLLECTORS if not collector.reads_only_host_files} - {
    "balloon",
    "guest_agent",
    "guest_memory",
    "hv_balloon",
    "virtio_queues",
}


@pytest.mark.parametrize(
    ("facts", "applicable"),
    [
        (VmFacts(), COLLECTORS_OF_ALL_VMS),
        (VmFacts("/b"), {*COLLECTORS_OF_ALL_VMS, "balloon"}),
        (VmFacts("/b", 5), {*COLLECTORS_OF_ALL_VMS, "balloon", "guest_memory"}),
        (VmFacts(None, 5), COLLECTORS_OF_ALL_VMS),
        (VmFacts(hv_balloon=True), {*COLLECTORS_OF_ALL_VMS, "hv_balloon"}),
        (VmFacts(virtio_disks=(VirtioDisk("disk0", "/d", 2),)), {*COLLECTORS_OF_ALL_VMS, "virtio_queues"}),
        (VmFacts(guest_agent_port="/machine/peripheral/p0"), {*COLLECTORS_OF_ALL_VMS, "guest_agent"}),
        (
            VmFacts(commands=frozenset({"query-status", "query-blockstats"})),
            COLLECTORS_OF_ALL_VMS - {"dirty", "kvm", "tpm", "vnc", "spice"},
        ),
    ],
)
def test_collectors_apply_only_to_vms_with_their_feature(facts: VmFacts, applicable: set[str]) -> None:
    assert {collector.name for collector in ALL_COLLECTORS if collector.commands(facts)} == applicable


def test_collectors_have_unique_names_and_share_no_family() -> None:
    def families(collector: Collector) -> list[str]:
        return [family.name for family in collector.families]

    assert len(BY_NAME) == len(ALL_COLLECTORS)
    named = [name for collector in ALL_COLLECTORS for name in families(collector)]
    assert len(named) == len(set(named))


def test_every_collector_is_in_all_and_every_family_has_a_collector() -> None:
    written = {
        collector.name: collector
        for module in pkgutil.iter_modules(collectors.__path__)
        for collector in vars(importlib.import_module(f"agent.collectors.{module.name}")).values()
        if isinstance(collector, Collector)
    }
    assert written == BY_NAME, "add it to ALL"
    by_hand = {
        BLOCK_SPACE,
        BLOCK_STALL,
        IDENTITY,
        BLOCK_STORAGE,
        POOL,
    }  # made by alerts, at attach, by the storage monitor and so on
    by_hand |= {HOST, HOST_HUGEPAGES}  # made by the host monitor
    by_hand |= {GUEST_AGENT_SESSION, *(family for collector in GUEST_COLLECTORS for family in collector.families)}
    assert {family for collector in ALL_COLLECTORS for family in collector.families} | by_hand == set(FAMILIES)
