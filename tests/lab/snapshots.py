"""Snapshots to look at: VMs put in by hand, without a session."""

from typing import Any

from agent.collectors import ALL
from agent.exposition.snapshot import Snapshot
from agent.model.family import Family, Sample
from agent.model.metrics import FAMILIES
from agent.model.record import Record, Vm
from agent.monitors import Monitor
from agent.monitors.base import ConnectionOpener
from agent.session.api import MonitorState, MonitorStatus
from agent.session.identity import Build

UUIDS = ["11111111-1111-4111-8111-111111111111", "22222222-2222-4222-8222-222222222222"]
SECOND = 1_000_000_000
BY_NAME = {family.name: family for family in FAMILIES}


def _open(*_: Any, **__: Any) -> Any:
    raise AssertionError("nobody connects here")


OPEN: ConnectionOpener = _open


def vm(number: int = 0, name: str = "vm1", monitor: str = "/run/vm1.qmp") -> Vm:
    return Vm("host1", UUIDS[number], name, monitor)


def status(
    whose: Vm, state: MonitorState = MonitorState.UP, *, key: object = 0, reason: str = "", package: str = "Debian"
) -> MonitorStatus:
    monitor = Monitor(whose.monitor, (whose.monitor, key), OPEN)
    return MonitorStatus(monitor, state, reason, whose, Build("7.2.22", package), 5 * SECOND)


def poll(snapshot: Snapshot, whose: Vm, collector: str, *replies: Any, at: int = 7) -> None:
    """Put in what a collector makes of these replies."""
    found = next(c for c in ALL if c.name == collector)
    snapshot.samples(whose, found.families, tuple(found.collect(replies)), at * SECOND)


def put(snapshot: Snapshot, whose: Vm, family: Family, *samples: tuple[tuple[str, ...], dict[str, Any]]) -> None:
    """Put in a family's samples as they are."""
    snapshot.samples(whose, (family,), [Sample(family, labels, values) for labels, values in samples], 7 * SECOND)


def event(whose: Vm, name: str) -> Record:
    return Record("qemu.event.x", whose, {"event": name, "category": "unknown", "qemu": {}}, 0)
