"""This host as one JSON: every VM at a glance, its monitors, what fires, how the agent does; whole, or what is new of it.

One VM's part is made once for each change, however many look on; whoever is slow gets fewer of them and never an old one, so that
nothing is queued for anybody.
"""

from collections.abc import Sequence
from typing import Any, Protocol

import orjson

from agent.exposition.rates import PollPair
from agent.exposition.snapshot import Snapshot, VmView
from agent.exposition.summary import summarize
from agent.model.family import Family, Kind
from agent.model.metrics import FAMILIES
from agent.model.record import Vm, sanitize


class OverviewSource(Protocol):
    """What is shown."""

    snapshot: Snapshot

    def health(self) -> dict[str, Any]:
        """Return how the agent does."""

    def firing_alerts(self) -> list[dict[str, Any]]:
        """Return what fires."""

    def resolved_levels(self, vm: Vm, device: str, /) -> Sequence[tuple[str, int]]:
        """Return the levels of a disk and the bytes past which each is exceeded, from the lowest up."""


class Overview:
    """Makes the JSON; one for all who look on."""

    def __init__(self, shown: OverviewSource) -> None:
        self._shown = shown
        self._rows: dict[str, tuple[VmView, int, orjson.Fragment]] = {}

    def views(self) -> dict[str, tuple[Vm, VmView]]:
        """Return the VMs, by UUID."""
        return {vm.uuid: (vm, view) for vm, view in self._shown.snapshot.views()}

    def row(self, vm: Vm, view: VmView) -> orjson.Fragment:
        """Return a VM at a glance, as JSON."""
        known = self._rows.get(vm.uuid)
        if known is None or known[:2] != (view, view.revision):
            known = self._rows[vm.uuid] = view, view.revision, orjson.Fragment(_kept(self._glance(vm, view)))
        return known[2]

    def forget(self, there: dict[str, tuple[Vm, VmView]]) -> None:
        """Let go of VMs that are gone."""
        for uuid in self._rows.keys() - there.keys():
            del self._rows[uuid]

    def _glance(self, vm: Vm, view: VmView) -> dict[str, Any]:
        status = view.status
        said = summarize(view.pairs)
        for disk in said.get("disks", ()):
            if "limit_bytes" in disk:
                disk["levels"] = self._shown.resolved_levels(vm, disk["device"])
        who: dict[str, Any] = {
            "uuid": vm.uuid,
            "name": sanitize(vm.name),
            "state": status.state.value,
            "reason": status.reason,
        }
        who |= {
            "since": status.since_ns / 1e9,
            "last_response": view.last_response_ns / 1e9,
            "monitor": sanitize(vm.monitor),
        }
        return who | {"qemu": status.build.version if status.build is not None else ""} | said

    def rest(self) -> dict[str, Any]:
        """Return all but the VMs."""
        monitors = [
            {
                "monitor": sanitize(status.monitor.name),
                "state": status.state.value,
                "reason": status.reason,
                "vm": sanitize(status.vm.name) if status.vm is not None else "",
                "uuid": status.vm.uuid if status.vm is not None else "",
                "since": status.since_ns / 1e9,
            }
            for status in self._shown.snapshot.monitors.values()
        ]
        return {"monitors": monitors, "alerts": self._shown.firing_alerts(), "agent": self._shown.health()}


class OverviewCursor:
    """What one who looks on has seen."""

    def __init__(self, overview: Overview) -> None:
        self._overview = overview
        self._seen: dict[str, tuple[VmView, int]] = {}
        self._rest: dict[str, bytes] = {}
        self._detail: tuple[VmView, int] | None = None

    def changes(self, uuid: str = "") -> dict[str, Any] | None:
        """Return what is new to this one, with all the figures of the VM of this UUID; None where nothing is."""
        there = self._overview.views()
        self._overview.forget(there)
        news: dict[str, Any] = {}
        changed = {key: both for key, both in there.items() if self._seen.get(key) != (both[1], both[1].revision)}
        if changed:
            news["vms"] = {key: self._overview.row(vm, view) for key, (vm, view) in changed.items()}
            new = changed.keys() - self._seen.keys()
            news["history"] = {key: list(map(list, there[key][1].history)) for key in new}
        if gone := self._seen.keys() - there.keys():
            news["gone"] = sorted(gone)
        self._seen = {key: (view, view.revision) for key, (_, view) in there.items()}
        for name, part in self._overview.rest().items():
            if self._rest.get(name) != (text := _kept(part)):
                self._rest[name] = text
                news[name] = orjson.Fragment(text)
        if uuid in there and self._detail != self._seen[uuid]:
            self._detail = self._seen[uuid]
            news["detail"] = detail(*there[uuid])
        return news or None


def _kept(value: Any) -> bytes:
    """Return it as JSON, to keep: a copy, since orjson leaves what it made in a buffer of up to eight times its size."""
    return bytes(memoryview(orjson.dumps(value)))


def detail(vm: Vm, view: VmView) -> dict[str, Any]:
    """Return all that is known of a VM, with what it means."""
    families = [_family(family, view.pairs[family.name]) for family in FAMILIES if family.name in view.pairs]
    return {"uuid": vm.uuid, "families": [f for f in families if f["subjects"]], "events": view.events}


def _family(family: Family, pair: PollPair) -> dict[str, Any]:
    there = {name for values in pair.now.values() for name in values}
    fields = [field for field in family.fields if field.name in there]
    counters = [field.name for field in fields if field.kind is Kind.COUNTER]
    return {
        "name": family.name,
        "help": family.help,
        "source": family.source,
        "labels": family.labels,
        "time": pair.time_ns / 1e9,
        "fields": [{"name": field.name, "kind": field.kind.value, "help": field.help} for field in fields],
        "subjects": [
            {"labels": labels, "values": values, "rates": pair.rates(labels, counters)}
            for labels, values in pair.now.items()
        ],
    }
