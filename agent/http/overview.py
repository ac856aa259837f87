"""The host overview as JSON: a summary of every VM, the monitors, the firing alerts and the agent's own state.

A client first gets the whole overview, and then only the changed parts. A VM's part is encoded once for each change, for all clients.
A slow client misses intermediate states and always gets the newest state, so nothing is queued.
"""

from collections.abc import Sequence
from typing import Any, Protocol

import orjson

from agent.exposition.rates import PollPair
from agent.exposition.snapshot import Snapshot, VmView
from agent.exposition.summary import summarize
from agent.model.family import Family, Kind
from agent.model.metrics import FAMILIES
from agent.model.record import Vm, encode_json, sanitize


class OverviewSource(Protocol):
    """The state that the overview encodes."""

    snapshot: Snapshot

    def health(self) -> dict[str, Any]:
        """Return the agent's own state."""

    def firing_alerts(self) -> list[dict[str, Any]]:
        """Return the firing alerts."""

    def resolved_levels(self, vm: Vm, device: str, /) -> Sequence[tuple[str, int]]:
        """Return a disk's threshold levels in ascending order, each as its text and the used bytes above which it is exceeded."""


class Overview:
    """Encodes the overview; one instance serves all clients."""

    def __init__(self, source: OverviewSource) -> None:
        self._source = source
        self._vms: dict[str, tuple[VmView, int, orjson.Fragment]] = {}

    def views(self) -> dict[str, tuple[Vm, VmView]]:
        """Return the VMs by UUID."""
        return {vm.uuid: (vm, view) for vm, view in self._source.snapshot.views()}

    def vm_json(self, vm: Vm, view: VmView) -> orjson.Fragment:
        """Return a VM's summary as JSON."""
        cached = self._vms.get(vm.uuid)
        if cached is None or cached[:2] != (view, view.revision):
            cached = self._vms[vm.uuid] = view, view.revision, orjson.Fragment(_encode(self._vm_summary(vm, view)))
        return cached[2]

    def forget_all_but(self, views: dict[str, tuple[Vm, VmView]]) -> None:
        """Forget the cached JSON of every VM that is not in `views`."""
        for uuid in self._vms.keys() - views.keys():
            del self._vms[uuid]

    def _vm_summary(self, vm: Vm, view: VmView) -> dict[str, Any]:
        status = view.status
        summary = summarize(view.polls)
        for disk in summary.get("disks", ()):
            if "limit_bytes" in disk:
                disk["levels"] = self._source.resolved_levels(vm, disk["device"])
        own: dict[str, Any] = {
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
            own["degraded"] = [{"collector": name, "cause": cause} for name, cause in status.degraded]
        return own | summary

    def host_parts(self) -> dict[str, Any]:
        """Return everything but the VMs."""
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
        return {"monitors": monitors, "alerts": self._source.firing_alerts(), "agent": self._source.health()}


class OverviewCursor:
    """The state of the overview that one client has received."""

    def __init__(self, overview: Overview) -> None:
        self._overview = overview
        self._vms: dict[str, tuple[VmView, int]] = {}
        self._host_parts: dict[str, bytes] = {}
        self._detail: tuple[VmView, int] | None = None

    def changes(self, uuid: str = "") -> dict[str, Any] | None:
        """Return what changed since the last call.

        Args:
            uuid: the VM whose values are all included.

        Returns:
            The changed parts by name; None if nothing changed.
        """
        views = self._overview.views()
        self._overview.forget_all_but(views)
        changes: dict[str, Any] = {}
        changed = {key: item for key, item in views.items() if self._vms.get(key) != (item[1], item[1].revision)}
        if changed:
            changes["vms"] = {key: self._overview.vm_json(vm, view) for key, (vm, view) in changed.items()}
            new = changed.keys() - self._vms.keys()
            changes["history"] = {key: list(map(list, views[key][1].history)) for key in new}
        if gone := self._vms.keys() - views.keys():
            changes["gone"] = sorted(gone)
        self._vms = {key: (view, view.revision) for key, (_, view) in views.items()}
        for name, part in self._overview.host_parts().items():
            if self._host_parts.get(name) != (text := _encode(part)):
                self._host_parts[name] = text
                changes[name] = orjson.Fragment(text)
        if uuid in views and self._detail != self._vms[uuid]:
            self._detail = self._vms[uuid]
            changes["detail"] = vm_detail(*views[uuid])
        return changes or None


def _encode(value: dict[str, Any]) -> bytes:
    """Return JSON that can be stored. It is a copy, because orjson's result keeps a buffer of up to eight times its size."""
    return bytes(memoryview(encode_json(value)))


def vm_detail(vm: Vm, view: VmView) -> dict[str, Any]:
    """Return all values of a VM, with the help text of each field."""
    families = [_family_detail(family, view.polls[family.name]) for family in FAMILIES if family.name in view.polls]
    return {"uuid": vm.uuid, "families": [f for f in families if f["subjects"]], "events": view.events}


def _family_detail(family: Family, polls: PollPair) -> dict[str, Any]:
    known = {name for values in polls.current.values() for name in values}
    fields = [field for field in family.fields if field.name in known]
    counters = [field.name for field in fields if field.kind is Kind.COUNTER]
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
