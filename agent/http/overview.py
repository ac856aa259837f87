"""The host overview as JSON: a summary of every VM, the monitors, the firing alerts and the agent's own state.

A client first gets the whole overview, and then only the changed parts. Each changed VM is encoded once for all clients. Nothing is queued
for a slow client: it misses intermediate states and gets the newest state.
"""

from collections.abc import Sequence
from typing import Any, Protocol

import orjson

from agent.exposition.rates import PollPair
from agent.exposition.snapshot import Snapshot, VmView
from agent.exposition.summary import summarize
from agent.host.pools.base import PoolKind
from agent.model.family import Family, FieldKind
from agent.model.json_encoding import encode_json
from agent.model.metrics import FAMILIES
from agent.model.metrics.pool import POOL
from agent.model.record import Vm, sanitize


class OverviewSource(Protocol):
    """The state that the overview encodes."""

    snapshot: Snapshot

    def health(self) -> dict[str, Any]:
        """Return the agent's own state, such as its problems, its sink and its queues."""

    def firing_alerts(self) -> list[dict[str, Any]]:
        """Return the firing alerts."""

    def levels_in_bytes(self, vm: Vm, device: str, /) -> Sequence[tuple[str, int]]:
        """Return a disk's alert levels in ascending order: each level's text in the config, and the used bytes that exceed it."""


class Overview:
    """Encodes the host overview. One instance serves all clients and caches the JSON of each VM."""

    def __init__(self, source: OverviewSource) -> None:
        self._source = source
        self._cache: dict[str, tuple[VmView, int, orjson.Fragment]] = {}  # by UUID: the VM, its revision, its JSON

    def views(self) -> dict[str, tuple[Vm, VmView]]:
        """Return the present VMs by UUID."""
        return {vm.uuid: (vm, view) for vm, view in self._source.snapshot.views()}

    def vm_json(self, vm: Vm, view: VmView) -> orjson.Fragment:
        """Return the JSON of a VM's summary."""
        cached = self._cache.get(vm.uuid)
        if cached is None or cached[:2] != (view, view.revision):
            cached = self._cache[vm.uuid] = view, view.revision, orjson.Fragment(_encode(self._vm_summary(vm, view)))
        return cached[2]

    def evict_removed_vms(self, views: dict[str, tuple[Vm, VmView]]) -> None:
        """Remove each VM from the cache that is not in `views`, the present VMs by UUID."""
        for uuid in self._cache.keys() - views.keys():
            del self._cache[uuid]

    def _vm_summary(self, vm: Vm, view: VmView) -> dict[str, Any]:
        status = view.status
        summary = summarize(view.polls)
        for disk in summary.get("disks", ()):
            if "limit_bytes" in disk:
                disk["levels"] = self._source.levels_in_bytes(vm, disk["device"])
        session: dict[str, Any] = {
            "uuid": vm.uuid,
            "name": sanitize(vm.name),
            "state": status.state.value,
            "reason": status.reason,
            "since": status.since_ns / 1e9,
            "last_response": view.last_response_ns / 1e9,
            "monitor": sanitize(vm.monitor),
            "qemu": status.build.version if status.build is not None else "",
        }
        if status.degraded:
            session["degraded"] = [{"collector": name, "cause": cause} for name, cause in status.degraded]
        return session | summary

    def host_parts(self) -> dict[str, Any]:
        """Return the parts of the overview that are not about one VM: the monitors, the firing alerts and the agent's own state."""
        monitors = [
            {
                "monitor": sanitize(status.monitor.name),
                "state": status.state.value,
                "reason": status.reason,
                "vm": sanitize(status.vm.name) if status.vm is not None else "",
                "uuid": status.vm.uuid if status.vm is not None else "",
                "since": status.since_ns / 1e9,
            }
            for status in self._source.snapshot.monitors.values()
        ]
        return {
            "monitors": monitors,
            "alerts": self._source.firing_alerts(),
            "pools": _pools(self._source.snapshot),
            "agent": self._source.health(),
        }


def _pools(snapshot: Snapshot) -> list[dict[str, Any]]:
    """Return the pools that images share, without block devices with one image."""
    pools = snapshot.host.get(POOL.name, {}).items()
    shared = ({"pool": name, "kind": kind, **values} for (name, kind), values in pools if kind != PoolKind.DEVICE)
    return sorted(shared, key=lambda pool: str(pool["pool"]))


class OverviewCursor:
    """Remembers which state of the overview one client has received."""

    def __init__(self, overview: Overview) -> None:
        self._overview = overview
        self._sent_vms: dict[str, tuple[VmView, int]] = {}  # by UUID: the VM and its revision
        self._sent_host_parts: dict[str, bytes] = {}
        self._sent_detail: tuple[VmView, int] | None = None

    def changes(self, uuid: str = "") -> dict[str, Any] | None:
        """Return the parts of the overview that changed since the previous call. The first call returns all parts.

        Args:
            uuid: the UUID of a VM whose values are all included; empty for none.

        Returns:
            The changed parts by name, such as `vms`; None if no part changed.
        """
        views = self._overview.views()
        self._overview.evict_removed_vms(views)
        changes: dict[str, Any] = {}
        changed = {key: item for key, item in views.items() if self._sent_vms.get(key) != (item[1], item[1].revision)}
        if changed:
            changes["vms"] = {key: self._overview.vm_json(vm, view) for key, (vm, view) in changed.items()}
            new = changed.keys() - self._sent_vms.keys()
            changes["history"] = {key: list(map(list, views[key][1].history)) for key in new}
        if gone := self._sent_vms.keys() - views.keys():
            changes["gone"] = sorted(gone)
        self._sent_vms = {key: (view, view.revision) for key, (_, view) in views.items()}
        for name, part in self._overview.host_parts().items():
            if self._sent_host_parts.get(name) != (text := _encode(part)):
                self._sent_host_parts[name] = text
                changes[name] = orjson.Fragment(text)
        if uuid in views and self._sent_detail != self._sent_vms[uuid]:
            self._sent_detail = self._sent_vms[uuid]
            changes["detail"] = vm_detail(*views[uuid])
        return changes or None


def _encode(value: dict[str, Any]) -> bytes:
    """Encode a value as JSON that can be cached. The copy is small; orjson's own result keeps a buffer of up to eight times its size."""
    return bytes(memoryview(encode_json(value)))


def vm_detail(vm: Vm, view: VmView) -> dict[str, Any]:
    """Return all values of a VM, with the help text of each field."""
    families = [_family_detail(family, view.polls[family.name]) for family in FAMILIES if family.name in view.polls]
    return {"uuid": vm.uuid, "families": [f for f in families if f["subjects"]], "events": view.events}


def _family_detail(family: Family, polls: PollPair) -> dict[str, Any]:
    known = {name for values in polls.current.values() for name in values}
    fields = [field for field in family.fields if field.name in known]
    counters = [field.name for field in fields if field.kind is FieldKind.COUNTER]
    return {
        "name": family.name,
        "help": family.help,
        "source": family.source,
        "labels": family.labels,
        "time": polls.time_ns / 1e9,
        "fields": [{"name": field.name, "kind": field.kind.value, "help": field.help} for field in fields],
        "subjects": [
            {"labels": labels, "values": values, "rates": polls.rates(labels, counters)}
            for labels, values in polls.current.items()
        ],
    }
