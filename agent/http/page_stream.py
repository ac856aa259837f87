"""Content of the page's stream: first the whole state of the host, and then the rows, alerts, pools and values that changed.

A row of the VM table is encoded once for all clients. Clients have no queues: a slow client skips intermediate states, and gets the newest
state.
"""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import orjson

from agent.exposition.snapshot import Snapshot, VmView
from agent.exposition.vm_table_rows import ROW_FIELDS, vm_row
from agent.http.overview import (
    OverviewSource,
    encode_json_for_cache,
    host_resources_json,
    monitor_json,
    pools_json,
    run_in_steps,
    values_and_rates_by_subject,
    vm_summary,
)
from agent.model.json_encoding import encode_json
from agent.model.metrics import FAMILIES
from agent.model.record import Vm, sanitize
from agent.session.shared_types import MonitorState

SESSION_FIELDS = ("name", "state", "reason", "since", "qemu", "degraded")
"""The first values of a row of the VM table, about the VM's monitor. `degraded` lists the collectors that are off."""

ROW_COLUMNS = (*SESSION_FIELDS, *ROW_FIELDS)
"""Names of the values of a row, in order."""

AttachedVms = Mapping[str, tuple[Vm, VmView]]
"""The attached VMs by UUID."""


class SharedPageState:
    """State that all open pages share, with a cache of each VM's encoded row."""

    def __init__(self, source: OverviewSource) -> None:
        self.source = source
        self._rows: dict[str, tuple[VmView, int, bytes]] = {}  # by UUID: the VM, its revision, its row

    @property
    def snapshot_of_all_vms(self) -> Snapshot:
        """The latest samples of all VMs."""
        return self.source.snapshot

    def attached_vms(self) -> AttachedVms:
        """Return the attached VMs by UUID."""
        return {vm.uuid: (vm, view) for vm, view in self.snapshot_of_all_vms.one_view_per_uuid()}

    def encode_changed_vm_rows(self, views: AttachedVms) -> Iterator[None]:
        """Encode the rows of VMs that changed, one row at each step of the iterator."""
        for uuid in self._rows.keys() - views.keys():
            del self._rows[uuid]
        for uuid, (vm, view) in views.items():
            known = self._rows.get(uuid)
            if known is not None and known[:2] == (view, view.revision):
                continue
            row = bytes(encode_json({"row": _row_values(vm, view)})[len(b'{"row":') : -1])
            if known is not None and known[2] == row:
                row = known[2]  # keep the old object, so that comparisons of unchanged rows are fast
            self._rows[uuid] = view, view.revision, row
            yield

    def encoded_vm_rows(self) -> dict[str, bytes]:
        """Return the encoded row of each VM by UUID, as of the last `encode_changed_vm_rows`."""
        return {uuid: row for uuid, (_, _, row) in self._rows.items()}

    def counts_by_state(self, views: AttachedVms) -> dict[str, Any]:
        """Return the number of VMs in each state, and of monitors in each state, as JSON."""
        states = Counter(_vm_state(view) for _, view in views.values())
        monitors = Counter(status.state.value for status in self.snapshot_of_all_vms.monitors.values())
        return {"states": states, "monitors": monitors}


def _vm_state(view: VmView) -> str:
    """Return QEMU's run state of a VM. Return the monitor's state if the VM's monitor is not up."""
    if view.status.state is not MonitorState.UP:
        return view.status.state.value
    polls = view.polls.get("runstate")
    return str(polls.current.get((), {}).get("status", "up")) if polls is not None else "up"


def _row_values(vm: Vm, view: VmView) -> list[Any]:
    status = view.status
    build = status.build.version if status.build is not None else ""
    degraded = [name for name, _ in status.degraded] or None
    since = round(status.since_ns / 1e9)
    return [sanitize(vm.name), status.state.value, status.reason, since, build, degraded, *vm_row(view.polls)]


class _SentEntries:
    """The entries that a client has received of one part of the state, such as the VM rows or the alerts."""

    def __init__(self) -> None:
        self._sent: dict[str, bytes] = {}

    def changes(self, current: Mapping[str, bytes]) -> dict[str, Any] | None:
        """Return as JSON the new and changed entries, and the keys of removed entries; None without changes."""
        changed = {key: text for key, text in current.items() if self._sent.get(key) != text}
        gone = sorted(self._sent.keys() - current.keys())
        self._sent = dict(current)
        if not changed and not gone:
            return None
        part: dict[str, Any] = {"set": {key: orjson.Fragment(text) for key, text in changed.items()}}
        return part | {"gone": gone} if gone else part


class PageChangeTracker:
    """Computes the next message for one open page, from the state that the page has received.

    Args:
        state: the state that all open pages share.
        uuid: the UUID of the VM that the page shows; empty for the table of all VMs.
        all_monitors: whether the page also shows the monitors that are up.
    """

    def __init__(self, state: SharedPageState, uuid: str = "", *, all_monitors: bool = False) -> None:
        self._state = state
        self._uuid = uuid
        self._all_monitors = all_monitors
        self._parts = {name: _SentEntries() for name in ("rows", "monitors", "alerts", "pools", "families")}
        self._wholes: dict[str, bytes] = {}  # the parts that are sent whole after each change
        self._vm: tuple[VmView, int] | None = None
        self._is_first = True

    async def next_changes(self) -> dict[str, Any] | None:
        """Return what has changed since the previous call, as JSON; None without changes. The first call returns the whole state."""
        views = self._state.attached_vms()
        changes: dict[str, Any] = {}
        if self._is_first:
            self._is_first = False
            changes["columns"] = ROW_COLUMNS
        if not self._uuid:
            await run_in_steps(self._state.encode_changed_vm_rows(views))
            self._add("rows", self._state.encoded_vm_rows(), changes)
        self._add("monitors", dict(self._monitors()), changes)
        alerts = self._state.source.firing_alerts()
        self._add("alerts", _encode_entries((alert["fingerprint"], alert) for alert in alerts), changes)
        pools = pools_json(self._state.snapshot_of_all_vms)
        self._add("pools", _encode_entries((f"{pool['kind']} {pool['pool']}", pool) for pool in pools), changes)
        self._add_whole("agent", self._state.source.agent_health() | self._state.counts_by_state(views), changes)
        self._add_whole("resources", host_resources_json(self._state.snapshot_of_all_vms), changes)
        self._add_vm(views, changes)
        return changes or None

    def _add(self, name: str, current: Mapping[str, bytes], changes: dict[str, Any]) -> None:
        part = self._parts[name].changes(current)
        if part is not None:
            changes[name] = part

    def _add_whole(self, name: str, current: dict[str, Any], changes: dict[str, Any]) -> None:
        text = encode_json(current)
        if text != self._wholes.get(name):
            self._wholes[name] = text
            changes[name] = orjson.Fragment(text)

    def _monitors(self) -> Iterator[tuple[str, bytes]]:
        for key, status in self._state.snapshot_of_all_vms.monitors.items():
            if self._all_monitors or status.state is not MonitorState.UP:
                yield repr(key), encode_json_for_cache(monitor_json(status))  # several monitors may have the same name

    def _add_vm(self, views: AttachedVms, changes: dict[str, Any]) -> None:
        """Add the summary of the VM that the page shows, and the families whose values changed."""
        found = views.get(self._uuid)
        if found is None:
            if self._uuid and self._vm is not None:
                changes["vm"] = self._vm = None
            return
        vm, view = found
        if self._vm == (view, view.revision):
            return
        self._vm = view, view.revision
        summary = vm_summary(self._state.source, vm, view) | {"events": view.events}
        changes["vm"] = orjson.Fragment(encode_json(summary))
        self._add("families", _encode_entries(_family_values(view)), changes)


def _encode_entries(entries: Iterable[tuple[str, dict[str, Any]]]) -> dict[str, bytes]:
    return {key: encode_json(entry) for key, entry in entries}


def _family_values(view: VmView) -> Iterator[tuple[str, dict[str, Any]]]:
    for family in FAMILIES:
        polls = view.polls.get(family.name)
        if polls is not None and polls.current:
            yield family.name, {"subjects": list(values_and_rates_by_subject(family, polls))}
