"""The alert of a pool that does not answer replaces the alerts of its stalled disks: one cause has one alert."""

from collections.abc import Iterable
from typing import Final

import pytest

from agent.alerts.pool_alerts import PoolAlerts
from agent.alerts.pool_levels import PoolPolicy
from agent.alerts.pool_usage import Image, PoolRegistry, PoolUsage
from agent.alerts.rules.overrides import AlertOverride, AlertOverrides
from agent.host.pools.base import Pool, PoolKind
from agent.model.family import Sample
from agent.model.metrics.block_stall import BLOCK_STALL
from agent.model.record import Record, Severity
from tests.lab.alert_scenario import SECOND, AlertScenario, Change
from tests.lab.thin_disks import GIB, HOST, VM

NFS: Final = Pool("filesystem:0:50", PoolKind.FILESYSTEM, "/nfs", "nfs4", "/nfs")
LOCAL: Final = Pool("filesystem:8:1", PoolKind.FILESYSTEM, "/local", "xfs", "/local")
FIRES: Final = [("io_stalled", "disk0", "firing")]


PoolChange = tuple[str, str, str, Severity]
"""Pool, level, new state and severity of an alert of a pool."""

SILENT: Final = ("/nfs", "", "firing", Severity.ERROR)
STANDS: Final = ("/nfs", "guests stand still", "firing", Severity.CRITICAL)


def changes(records: Iterable[Record]) -> list[PoolChange]:
    return [(each.subject, each.data.get("level", ""), each.data["state"], each.severity) for each in records]


class StalledHost:
    """A VM whose disk0 has its image on NFS and its backing image on a local file system, and whose disk1 is local."""

    def __init__(self, alerts: AlertScenario) -> None:
        self.alerts = alerts
        alerts.attach()
        self.registry = PoolRegistry()
        self.pools = PoolAlerts(HOST, alerts.engine.store, self.registry, lambda _usage: PoolPolicy((), 0.0))
        alerts.engine.rules.samples.pools_of_disk = self.registry.pools_of_disk
        places = (("disk0", "storage", NFS), ("disk0", "backing-1", LOCAL), ("disk1", "storage", LOCAL))
        images = [(Image(disk, layer, "file", disk + layer, GIB, 0, GIB), pool) for disk, layer, pool in places]
        self.registry.set_images_of_vm(VM, images, 0.0)

    def pool(self, pool: Pool) -> PoolUsage:
        return self.registry.pools[pool.key]

    def hang(self, pool: Pool, at: float) -> list[PoolChange]:
        """Read a pool that does not answer."""
        return changes(self.pools.on_unresponsive(self.pool(pool), int(at * SECOND)))

    def answer(self, pool: Pool, at: float) -> list[PoolChange]:
        return changes(self.pools.on_pool_answered(self.pool(pool), int(at * SECOND)))

    def poll(self, at: float, *disks: str, seconds: float = 60.0) -> list[Change]:
        """Poll the VM, some of whose disks have completed no request for a minute."""
        values = {"state": "stalled", "seconds": seconds}
        return self.alerts.samples(at, BLOCK_STALL, *(Sample(BLOCK_STALL, (disk,), values) for disk in disks))


@pytest.fixture
def host(scenario: AlertScenario) -> StalledHost:
    return StalledHost(scenario)


def test_a_disk_fires_if_it_still_stands_after_its_pool_answers(host: StalledHost) -> None:
    host.hang(NFS, 1)
    assert host.poll(2, "disk0") == []
    host.answer(NFS, 3)
    assert host.poll(4, "disk0") == FIRES


def test_an_alert_that_fired_first_is_resolved_as_covered(host: StalledHost) -> None:
    assert host.poll(1, "disk0") == FIRES
    host.hang(NFS, 2)
    assert host.poll(3, "disk0") == [("io_stalled", "disk0", "resolved")]
    assert host.alerts.emitted[-1].data["resolved_by"] == "covered"
    assert host.poll(4, "disk0") == []


def test_the_pool_of_a_backing_image_counts_too(host: StalledHost) -> None:
    host.hang(LOCAL, 1)
    assert host.poll(2, "disk0") == []


def test_a_disk_of_another_pool_fires(host: StalledHost) -> None:
    host.hang(NFS, 1)
    assert host.poll(2, "disk0", "disk1") == [("io_stalled", "disk1", "firing")]


def test_a_disk_fires_if_the_config_turns_the_alert_of_the_pool_off(host: StalledHost) -> None:
    off = AlertOverrides([AlertOverride(alert="pool_unresponsive", enabled=False)])
    host.alerts.engine.set_overrides(off, ())
    host.hang(NFS, 1)
    assert host.poll(2, "disk0") == FIRES


# --- Guests that stand still ---


def test_a_pool_is_critical_if_a_guest_on_it_stands_still(host: StalledHost) -> None:
    """The alert of the pool replaces the alert of the disk, which is critical because the guest stands still."""
    assert host.hang(NFS, 1) == [SILENT]
    host.poll(2, "disk0", seconds=29.0)
    assert host.hang(NFS, 3) == [], "the limit of io_stalled is 30 s"
    host.poll(4, "disk0", seconds=31.0)
    assert host.hang(NFS, 5) == [STANDS]
    assert host.hang(NFS, 6) == []
    ended = [("/nfs", "", "resolved", Severity.INFO), ("/nfs", "guests stand still", "resolved", Severity.INFO)]
    assert host.answer(NFS, 7) == ended
    assert host.hang(NFS, 8) == [SILENT], "nothing is known of the guests since the answer"


def test_a_pool_is_critical_at_once_if_the_alert_of_the_disk_fired_before(host: StalledHost) -> None:
    host.poll(1, "disk0")
    host.hang(NFS, 2)
    host.poll(3, "disk0")
    assert host.hang(NFS, 4) == [STANDS]


def test_only_the_pool_that_does_not_answer_is_critical(host: StalledHost) -> None:
    host.hang(NFS, 1)
    host.poll(2, "disk0", "disk1")
    assert host.hang(NFS, 3) == [STANDS]
    assert host.hang(LOCAL, 4) == [("/local", "", "firing", Severity.ERROR)]


def test_a_pool_is_not_critical_if_the_config_turns_the_alert_of_the_disk_off(host: StalledHost) -> None:
    host.alerts.engine.set_overrides(AlertOverrides([AlertOverride(alert="io_stalled", enabled=False)]), ())
    host.hang(NFS, 1)
    host.poll(2, "disk0")
    assert host.hang(NFS, 3) == []


def test_the_config_sets_the_severity_of_both_alerts_of_a_pool(host: StalledHost) -> None:
    host.alerts.engine.set_overrides(
        AlertOverrides([AlertOverride("pool_unresponsive", severity=Severity.WARNING)]), ()
    )
    host.hang(NFS, 1)
    host.poll(2, "disk0")
    assert [severity for *_, severity in host.hang(NFS, 3)] == [Severity.WARNING]
