"""Alerts of pools: one for each level and pool, whatever is restarted, and one for a pool that does not answer."""

import json
from collections.abc import Iterable
from typing import Any, Final

import pytest

from agent.alerts.pool_alerts import PoolAlerts
from agent.alerts.pool_levels import PoolPolicy, parse_pool_level
from agent.alerts.pool_usage import GrowingDisk, Image, PoolRegistry, PoolUsage
from agent.alerts.rules.overrides import AlertOverride, AlertOverrides
from agent.alerts.store import AlertStore
from agent.host.pools.base import Pool, PoolKind, PoolReading
from agent.model.record import Record, Severity, Vm

GIB: Final = 1 << 30
SECOND: Final = 1_000_000_000
IMAGES: Final = Pool("filesystem:8:1", PoolKind.FILESYSTEM, "/images", "xfs", "/images")


class PoolScenario:
    """Alerts of pools with levels, six VMs on one pool of 1000 GiB, and the entries on disk."""

    def __init__(self, *levels: str, hysteresis: float = 0.02, pool: Pool = IMAGES) -> None:
        self.levels, self.hysteresis, self.pool = levels, hysteresis, pool
        self.entries: dict[str, Any] = {}
        self.now = 1_000_000.0
        self.start()

    def start(self) -> None:
        """Start a run of the agent."""
        self.store, self.registry = AlertStore(), PoolRegistry()
        policy = PoolPolicy(tuple(map(parse_pool_level, self.levels)), self.hysteresis)
        growers = [GrowingDisk("vm3", "disk0", 5.0)]
        self.alerts = PoolAlerts("hv7", self.store, self.registry, lambda _usage: policy, lambda _usage: growers)
        self.alerts.restore(self.entries, self.now)

    def place(self) -> PoolUsage:
        """Find the pool of the images of six VMs."""
        for number in range(6):
            vm = Vm("hv7", f"00000000-0000-0000-0000-00000000000{number}", f"vm{number}", f"/run/vm{number}.qmp")
            image = Image("disk0", "storage", "file", f"/images/{number}", GIB, GIB, GIB)
            self.registry.set_images_of_vm(vm, [(image, self.pool)], self.now)
        return self.registry.pools[self.pool.key]

    def store_entries(self, usage: PoolUsage, records: Iterable[Record]) -> list[Record]:
        """Persist the entry of each record, as the journal does."""
        stored = []
        for record in records:
            name, entry = self.alerts.entry_of_pool(usage)
            self.entries[name] = json.loads(json.dumps(entry))
            stored.append(record)
        return stored

    def read(self, free_gib: float, **figures: Any) -> list[tuple[str, str, str]]:
        """Read the pool; return the name, the level and the new state of each alert that changed."""
        self.now += 10
        usage = self.place()
        usage.on_reading(PoolReading(1000 * GIB, int(free_gib * GIB), **figures), self.now)
        return changes(self.store_entries(usage, self.alerts.on_reading(usage, int(self.now * SECOND))))


def changes(records: Iterable[Record]) -> list[tuple[str, str, str]]:
    return [(record.data["alert"], record.data.get("level", ""), record.data["state"]) for record in records]


def filling(level: str, state: str = "firing") -> tuple[str, str, str]:
    return "pool_filling", level, state


def test_a_level_fires_once_for_all_vms_on_the_pool_and_names_them() -> None:
    pool = PoolScenario("85%")
    assert pool.read(151) == []
    assert pool.read(149) == [filling("85%")]
    assert pool.read(100) == []
    (alert,) = pool.store
    assert (alert.subject, alert.pool, alert.device, alert.vm.uuid) == ("/images", "/images", "", "")
    assert (alert.data["vms"], alert.data["vm_names"]) == (6, [f"vm{number}" for number in range(6)])
    assert alert.data["growers"] == [{"vm": "vm3", "device": "disk0", "growth_bytes_per_second": 5.0}]
    assert (alert.data["measure"], alert.data["free_bytes"]) == ("space", 100 * GIB)


def test_a_silenced_pool_has_no_alert_until_it_is_not_silenced() -> None:
    pool = PoolScenario("85%")
    pool.read(149)
    pool.store.apply_override = AlertOverrides(
        [AlertOverride("pool_*", device="/images", enabled=False)]
    ).override_severity_or_mute
    assert pool.read(140) == [filling("85%", "resolved")]
    assert pool.read(130) == []
    assert list(pool.store) == []
    pool.store.apply_override = AlertOverrides().override_severity_or_mute
    assert pool.read(120) == [filling("85%")]


def test_a_level_is_resolved_below_its_hysteresis() -> None:
    pool = PoolScenario("85%")
    pool.read(149)
    assert pool.read(160) == []
    assert pool.read(171) == [filling("85%", "resolved")]
    assert pool.read(149) == [filling("85%")]


def test_free_bytes_are_a_level_too() -> None:
    pool = PoolScenario("free 20GiB")
    assert pool.read(20) == []
    assert pool.read(19) == [filling("free 20GiB")]
    assert pool.read(39) == []
    assert pool.read(41) == [filling("free 20GiB", "resolved")]


def test_the_highest_of_several_levels_is_critical() -> None:
    pool = PoolScenario("95%", "free 100GiB", "85%", "full in 2h")
    assert pool.read(1) == [filling("95%"), filling("free 100GiB"), filling("85%")]
    severities = {alert.level: alert.severity for alert in pool.store}
    assert severities == {"95%": Severity.CRITICAL, "free 100GiB": Severity.WARNING, "85%": Severity.WARNING}


def test_a_forecast_fires_on_steady_growth_and_ends_with_it() -> None:
    pool = PoolScenario("full in 2h")
    fired = [change for step in range(120) for change in pool.read(900 - 2 * step)]
    assert fired == [filling("full in 2h")]
    ended = [change for _ in range(120) for change in pool.read(660)]
    assert ended == [filling("full in 2h", "resolved")]


def test_a_pause_of_the_writer_does_not_resolve_a_forecast() -> None:
    pool = PoolScenario("full in 2h")
    for step in range(120):
        pool.read(900 - 2 * step)
    paused = [change for _ in range(12) for change in pool.read(662)]
    again = [change for step in range(60) for change in pool.read(662 - 2 * step)]
    assert paused + again == []


def test_a_short_burst_is_no_forecast() -> None:
    pool = PoolScenario("full in 2h")
    assert [change for step in range(3) for change in pool.read(900 - 2 * step)] == []


def test_inodes_run_out_too() -> None:
    pool = PoolScenario("inodes 90%")
    assert pool.read(500, inodes=1000, free_inodes=101) == []
    assert pool.read(500, inodes=1000, free_inodes=99) == [filling("inodes 90%")]
    assert pool.read(500, inodes=1000, free_inodes=130) == [filling("inodes 90%", "resolved")]


def test_the_metadata_of_a_thin_pool_has_levels_of_its_own() -> None:
    pool = PoolScenario("metadata 75%", "metadata 85%", pool=Pool("lvm_thin:vg/thin", PoolKind.LVM_THIN, "vg/thin"))
    assert pool.read(900, metadata_size_bytes=1000, metadata_free_bytes=240) == [filling("metadata 75%")]
    assert pool.read(900, metadata_size_bytes=1000, metadata_free_bytes=100) == [filling("metadata 85%")]


def test_an_unknown_figure_fires_and_resolves_nothing() -> None:
    pool = PoolScenario("inodes 90%", "metadata 75%")
    pool.read(500, inodes=1000, free_inodes=50)
    assert pool.read(500) == []
    assert [alert.level for alert in pool.store] == ["inodes 90%"]


def test_blocks_that_are_reserved_for_root_do_not_count_as_free() -> None:
    pool = PoolScenario("95%")
    assert pool.read(40, used_bytes=910 * GIB) == [filling("95%")]


def test_a_level_that_the_config_no_longer_has_is_resolved() -> None:
    pool = PoolScenario("85%", "95%")
    pool.read(100)
    (usage,) = pool.alerts.set_policy(lambda _usage: PoolPolicy((parse_pool_level("95%"),)))
    records = pool.alerts.update_level_alerts(usage, int(pool.now * SECOND))
    assert [(record.data["level"], record.data["resolved_by"]) for record in records] == [("85%", "level_gone")]


def test_a_device_with_one_image_has_no_alert_of_its_own() -> None:
    pool = PoolScenario("1%", pool=Pool("device:253:3", PoolKind.DEVICE, "/dev/vg/lv"))
    assert pool.read(0) == []
    assert not pool.place().has_levels


@pytest.mark.parametrize(("levels", "expected"), [(("85%",), True), (("full in 2h", "inodes 90%"), False), ((), False)])
def test_the_disks_on_a_pool_need_no_alert_if_a_level_is_about_space(levels: tuple[str, ...], expected: bool) -> None:  # noqa: FBT001
    assert PoolScenario(*levels).place().has_levels is expected


def test_a_pool_that_does_not_answer_fires_once_and_is_resolved_by_its_answer() -> None:
    pool = PoolScenario("85%")
    pool.read(500)
    usage = pool.place()
    usage.unresponsive_since = pool.now
    for _ in range(3):
        fired = pool.store_entries(usage, pool.alerts.on_unresponsive(usage, int(pool.now * SECOND)))
    assert fired == []
    (alert,) = pool.store
    assert (alert.name, alert.severity, alert.data["vms"]) == ("pool_unresponsive", Severity.ERROR, 6)
    assert pool.read(500) == [("pool_unresponsive", "", "resolved")]


def test_a_restart_repeats_and_forgets_no_alert() -> None:
    pool = PoolScenario("85%", "95%")
    pool.read(100)
    pool.start()
    assert [alert.level for alert in pool.store] == ["85%"]
    assert pool.read(100) == []
    assert pool.read(10) == [filling("95%")]
    pool.start()
    assert pool.read(500) == [filling("85%", "resolved"), filling("95%", "resolved")]


def test_the_fingerprint_survives_a_restart() -> None:
    pool = PoolScenario("85%")
    pool.read(100)
    before = [alert.fingerprint for alert in pool.store]
    pool.start()
    assert [alert.fingerprint for alert in pool.store] == before


def test_the_growth_of_a_day_survives_a_restart() -> None:
    pool = PoolScenario("full in 1d")
    for step in range(24 * 360):
        pool.now += 0
        usage = pool.place() if step == 0 else pool.registry.pools[IMAGES.key]
        usage.on_reading(PoolReading(1000 * GIB, int((900 - step / 40) * GIB)), pool.now + step * 10)
    for name, entry in pool.alerts.entries_to_store():
        pool.entries[name] = json.loads(json.dumps(entry))
    pool.now += 24 * 3600
    pool.start()
    assert pool.read(900 - 24 * 9 - 0.25) == []
    rate = pool.place().growth.rate(86400.0)
    assert rate == pytest.approx(GIB / 400, rel=0.02)


def test_a_pool_without_vms_resolves_its_alerts() -> None:
    pool = PoolScenario("85%")
    pool.read(100)
    records = pool.alerts.on_removed(pool.place(), int(pool.now * SECOND))
    assert [record.data["resolved_by"] for record in records] == ["pool_unused"]
    assert len(pool.store) == 0


def test_entries_are_due_for_new_points_and_for_pools_that_are_gone() -> None:
    pool = PoolScenario("85%")
    pool.read(500)
    assert [name for name, _ in pool.alerts.entries_to_store()] == ["pools/filesystem:8:1"]
    assert pool.alerts.entries_to_store() == []
    pool.registry.remove_pool(pool.place())
    assert pool.alerts.entries_to_store() == [("pools/filesystem:8:1", None)]


@pytest.mark.parametrize(
    "entry", [None, 5, {}, {"pool": ["x"], "name": "a"}, {"pool": ["nfs", "a", "", ""], "name": "a"}, {"pool": None}]
)
def test_an_entry_that_is_not_a_pool_is_ignored(entry: object) -> None:
    pool = PoolScenario("85%")
    pool.alerts.restore({"pools/filesystem:8:1": entry, "alerts/x": {}}, 0.0)
    assert list(pool.registry) == []


def test_the_next_level_is_near_when_growth_reaches_it_soon() -> None:
    pool = PoolScenario("85%", "95%")
    pool.read(200)
    assert pool.alerts.seconds_until_level(pool.place()) is None
    pool.read(190)
    assert pool.alerts.seconds_until_level(pool.place()) == pytest.approx(40)
    pool.read(140)
    assert pool.alerts.seconds_until_level(pool.place()) == pytest.approx(18)


@pytest.mark.parametrize(
    "text", ["", "85", "0%", "101%", "used 5GiB", "free", "free 0", "full in", "full in 0s", "inodes 5", "x 5%"]
)
def test_a_text_that_is_no_level_says_what_one_is(text: str) -> None:
    with pytest.raises(ValueError, match=r'should be a level such as "85%"'):
        parse_pool_level(text)
