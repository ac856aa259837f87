"""Encodes the host overview as JSON, for `qmp-agent top` and other clients of /overview.

The overview has a summary of every VM, the monitors, the firing alerts, the pools, the host's resources and the agent's own state.
"""

import asyncio
import time
from collections.abc import Iterator, Sequence
from typing import Any, Protocol

import orjson

from agent.exposition.rates import PollPair
from agent.exposition.snapshot import Snapshot, VmView
from agent.exposition.vm_summary import summarize_vm
from agent.host.pools.base import PoolKind
from agent.model.family import Family, FieldKind
from agent.model.json_encoding import encode_json
from agent.model.metrics import FAMILIES
from agent.model.metrics.host_resources import HOST, HOST_HUGEPAGES
from agent.model.metrics.storage_pool import POOL
from agent.model.record import Vm, sanitize
from agent.session.shared_types import MonitorStatus

MAX_BLOCKING_SECONDS = 0.005
"""Maximum seconds for which the encoding may block the event loop. QMP events wait meanwhile."""


class OverviewSource(Protocol):
    """Interface through which the overview reads the agent's state."""

    snapshot: Snapshot

    def agent_health(self) -> dict[str, Any]:
        """Return the agent's own state as JSON, such as problems, the sink and the queues."""

    def firing_alerts(self) -> list[dict[str, Any]]:
        """Return the firing alerts as JSON."""

    def disk_alert_levels_in_bytes(self, vm: Vm, device: str, /) -> Sequence[tuple[str, int]]:
        """Return the levels at which a disk's usage fires an alert, lowest first: each as written in the config, and in used bytes."""

    def latency_histogram_owner(self, vm: Vm, device: str, /) -> str:
        """Return which client has set a disk's latency histograms: `agent` or `other`; empty if unknown."""


class OverviewBuilder:
    """Encodes the host overview, and caches the JSON of each VM."""

    def __init__(self, source: OverviewSource) -> None:
        self._source = source
        self._cache: dict[str, tuple[VmView, int, orjson.Fragment]] = {}  # by UUID: the VM, its revision, its JSON

    async def build(self, uuid: str = "") -> dict[str, Any]:
        """Return the whole overview.

        Args:
            uuid: the UUID of a VM whose values are all included; empty for no VM.
        """
        views = {vm.uuid: (vm, view) for vm, view in self._source.snapshot.one_view_per_uuid()}
        for gone in self._cache.keys() - views.keys():
            del self._cache[gone]
        await run_in_steps(self._encode_changed(views))
        overview: dict[str, Any] = {"vms": {key: self._vm_json(vm, view) for key, (vm, view) in views.items()}}
        overview |= {
            "monitors": [monitor_json(status) for status in self._source.snapshot.monitors.values()],
            "alerts": self._source.firing_alerts(),
            "pools": pools_json(self._source.snapshot),
            "resources": host_resources_json(self._source.snapshot),
            "agent": self._source.agent_health(),
        }
        if uuid in views:
            overview["detail"] = vm_detail(*views[uuid])
        return overview

    def _encode_changed(self, views: dict[str, tuple[Vm, VmView]]) -> Iterator[None]:
        for vm, view in views.values():
            self._vm_json(vm, view)
            yield

    def _vm_json(self, vm: Vm, view: VmView) -> orjson.Fragment:
        """Return the JSON of a VM's summary."""
        cached = self._cache.get(vm.uuid)
        if cached is None or cached[:2] != (view, view.revision):
            text = encode_json_for_cache(vm_summary(self._source, vm, view))
            cached = self._cache[vm.uuid] = view, view.revision, orjson.Fragment(text)
        return cached[2]


async def run_in_steps(steps: Iterator[None]) -> None:
    """Run an iterator to its end, and let the event loop run every 5 ms."""
    resumed = time.perf_counter()
    for _ in steps:
        if time.perf_counter() - resumed > MAX_BLOCKING_SECONDS:
            await asyncio.sleep(0)
            resumed = time.perf_counter()


def vm_summary(source: OverviewSource, vm: Vm, view: VmView) -> dict[str, Any]:
    """Return the summary of a VM as JSON, with the state of its monitor."""
    status = view.status
    summary = summarize_vm(view.polls)
    for disk in summary.get("disks", ()):
        if view.latency_windows is not None and (latencies := view.latency_windows.quantiles_of(disk["device"])):
            disk["latencies"] = latencies
            disk["histogram_owner"] = source.latency_histogram_owner(vm, disk["device"])
        if "limit_bytes" in disk:
            disk["levels"] = source.disk_alert_levels_in_bytes(vm, disk["device"])
    if "guest" in summary and view.guest_response_ns:
        summary["guest"]["last_response"] = view.guest_response_ns / 1e9
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


def monitor_json(status: MonitorStatus) -> dict[str, Any]:
    """Return the state of a monitor as JSON."""
    return {
        "monitor": sanitize(status.monitor.name),
        "state": status.state.value,
        "reason": status.reason,
        "vm": sanitize(status.vm.name) if status.vm is not None else "",
        "uuid": status.vm.uuid if status.vm is not None else "",
        "since": status.since_ns / 1e9,
    }


def pools_json(snapshot: Snapshot) -> list[dict[str, Any]]:
    """Return the storage pools as JSON, sorted by name, without block devices that hold a single image."""
    pools = snapshot.host_samples.get(POOL.name, {}).items()
    shared = ({"pool": name, "kind": kind, **values} for (name, kind), values in pools if kind != PoolKind.DEVICE)
    return sorted(shared, key=lambda pool: str(pool["pool"]))


_WAITING_RATES = {
    "waiting_for_cpu_ratio": "pressure_cpu_waiting_seconds_total",
    "waiting_for_memory_ratio": "pressure_memory_waiting_seconds_total",
    "waiting_for_io_ratio": "pressure_io_waiting_seconds_total",
    "swap_in_bytes_per_second": "swap_in_bytes_total",
}
"""The host's counters, by the names of their rates in /overview."""


def host_resources_json(snapshot: Snapshot) -> dict[str, Any]:
    """Return the host's resources as JSON: the last sample, rates, and huge pages; empty before the first sample."""
    values = snapshot.host_samples.get(HOST.name, {}).get(())
    if values is None:
        return {}
    rates = snapshot.host_polls.rates_for_labels((), _WAITING_RATES.values())
    hugepages = snapshot.host_samples.get(HOST_HUGEPAGES.name, {}).items()
    return {
        **values,
        **{name: rates[counter] for name, counter in _WAITING_RATES.items() if counter in rates},
        "hugepages": [{"size": size, **pool} for (size,), pool in hugepages],
    }


def encode_json_for_cache(value: dict[str, Any]) -> bytes:
    """Encode a value as JSON for a cache. Copy the bytes, because orjson's own result may occupy eight times the size of the JSON."""
    return bytes(memoryview(encode_json(value)))


def vm_detail(vm: Vm, view: VmView) -> dict[str, Any]:
    """Return all values of a VM as JSON, with the help text of each field."""
    families = [_family_detail(family, view.polls[family.name]) for family in FAMILIES if family.name in view.polls]
    return {"uuid": vm.uuid, "families": [f for f in families if f["subjects"]], "events": view.events}


def _family_detail(family: Family, polls: PollPair) -> dict[str, Any]:
    known = {name for values in polls.current.values() for name in values}
    fields = [field for field in family.fields if field.name in known]
    return {
        "name": family.name,
        "help": family.help,
        "source": family.source,
        "labels": family.labels,
        "time": polls.time_ns / 1e9,
        "fields": [{"name": field.name, "kind": field.kind.value, "help": field.help} for field in fields],
        "subjects": [
            {"labels": labels, "values": values, "rates": rates}
            for labels, values, rates in values_and_rates_by_subject(family, polls)
        ],
    }


def values_and_rates_by_subject(
    family: Family, polls: PollPair
) -> Iterator[tuple[tuple[str, ...], dict[str, Any], dict[str, float]]]:
    """Yield the labels, the values and the rates of each subject of a family."""
    counters = [field.name for field in family.fields if field.kind is FieldKind.COUNTER]
    for labels, values in polls.current.items():
        yield labels, values, polls.rates_for_labels(labels, counters)
