"""Helpers that put VMs and samples into a Snapshot without a session."""

from typing import Any

from agent.collectors import ALL_COLLECTORS
from agent.exposition.snapshot import Snapshot
from agent.model.family import Family, Sample
from agent.model.metrics import FAMILIES
from agent.model.record import Record, Vm
from agent.monitors import Monitor
from agent.monitors.base import ConnectionOpener
from agent.session.identity_and_features import QemuBuild
from agent.session.shared_types import MonitorState, MonitorStatus

UUIDS = ["11111111-1111-4111-8111-111111111111", "22222222-2222-4222-8222-222222222222"]
SECOND = 1_000_000_000
"""Nanoseconds."""
BY_NAME = {family.name: family for family in FAMILIES}


def _open(*_: Any, **__: Any) -> Any:
    raise AssertionError("a monitor made by hand has no connection")


OPEN: ConnectionOpener = _open


def vm(number: int = 0, name: str = "vm1", monitor: str = "/run/vm1.qmp") -> Vm:
    """Return a VM with the UUID of this number."""
    return Vm("host1", UUIDS[number], name, monitor)


def status(
    owner: Vm, state: MonitorState = MonitorState.UP, *, key: object = 0, reason: str = "", package: str = "Debian"
) -> MonitorStatus:
    """Return the status of a VM's monitor. A different key means a monitor at another socket."""
    monitor = Monitor(owner.monitor, (owner.monitor, key), OPEN)
    return MonitorStatus(monitor, state, reason, owner, QemuBuild("7.2.22", package), 5 * SECOND)


def poll(snapshot: Snapshot, owner: Vm, collector: str, *replies: Any, at: int = 7) -> None:
    """Run a collector on these replies, and put its samples into a snapshot."""
    chosen = next(c for c in ALL_COLLECTORS if c.name == collector)
    snapshot.replace_samples(owner, chosen.families, tuple(chosen.collect(replies)), at * SECOND)


def put(snapshot: Snapshot, owner: Vm, family: Family, *samples: tuple[tuple[str, ...], dict[str, Any]]) -> None:
    """Put these samples of a family into a snapshot."""
    snapshot.replace_samples(
        owner, (family,), [Sample(family, labels, values) for labels, values in samples], 7 * SECOND
    )


def event(owner: Vm, name: str) -> Record:
    """Return the record of an event."""
    return Record("qemu.event.x", owner, {"event": name, "category": "unknown", "qemu": {}}, 0)


def disk_counters(read: int = 0, write: int = 0, reads: int = 0, writes: int = 0) -> dict[str, int]:
    """Return the activity counters of a disk."""
    return {"read_bytes_total": read, "write_bytes_total": write, "reads_total": reads, "writes_total": writes}


class OneVmSource:
    """An OverviewSource with one attached VM."""

    def __init__(self) -> None:
        self.snapshot = Snapshot()
        self.snapshot.update_monitor_status(status(vm()))
        self.error = ""

    def agent_health(self) -> dict[str, Any]:
        return {"error": self.error}

    def firing_alerts(self) -> list[dict[str, Any]]:
        return []

    def disk_alert_levels_in_bytes(self, _vm: Vm, _device: str, /) -> list[tuple[str, int]]:
        return [("80%", 80), ("90%", 90)]

    def latency_histogram_owner(self, _vm: Vm, _device: str, /) -> str:
        return ""

    def put(
        self, family: Family, at: float, *samples: tuple[tuple[str, ...], dict[str, Any]], owner: Vm | None = None
    ) -> None:
        """Put these samples of a family into the snapshot, as of a poll at this time in seconds."""
        polled = [Sample(family, labels, values) for labels, values in samples]
        self.snapshot.replace_samples(owner or vm(), (family,), polled, round(at * SECOND))
