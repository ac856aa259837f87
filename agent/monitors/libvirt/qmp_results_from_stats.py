"""Translation of libvirt's statistics and devices into the results of QMP commands. Pure.

libvirt itself sends these commands to QEMU, and reports a part of the results with libvirt's own names and units. The tables below convert
these values to QEMU's names and units, so that the collectors read one format. A value that libvirt does not report is absent.
"""

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from agent.monitors.libvirt.devices import GUEST_AGENT_PORT, DomainDevices, ImageLayer
from agent.qmp.client import CommandResult
from agent.qmp.commands import Command
from agent.qmp.errors import CommandError, QmpError

Stats = Mapping[str, Any]
"""A domain's statistics by the names of virConnectGetAllDomainStats, such as `block.0.rd.reqs`."""


FileSizes = Mapping[str, tuple[int, int]]
"""Allocated bytes and size in bytes of the disks that are files, by target."""


# --- Run state ---

_RUN_STATES = {
    1: "running",
    2: "io-error",
    3: "paused",
    4: "shutdown",
    5: "shutdown",
    6: "guest-panicked",
    7: "suspended",
}
"""QEMU's run state by virDomainState. Only Xen's domains have the state 2 (blocked)."""

_PAUSED_RUN_STATES = {
    2: "finish-migrate",
    3: "save-vm",
    5: "io-error",
    6: "watchdog",
    8: "internal-error",
    9: "restore-vm",
    10: "guest-panicked",
    11: "inmigrate",
}
"""QEMU's run state by virDomainPausedReason, for the reasons that correspond to a run state."""


STATUS_RUNNING = {"status": "running", "running": True}
"""Result of query-status for a running guest."""


def query_status_result(stats: Stats) -> CommandResult:
    """Return the result of query-status."""
    state = stats.get("state.state")
    run_state = _RUN_STATES.get(state, "") if isinstance(state, int) else ""
    if run_state == "paused":
        run_state = _PAUSED_RUN_STATES.get(stats.get("state.reason", 0), run_state)
    return (
        {"status": run_state, "running": run_state == "running"} if run_state else _missing_value_error("state.state")
    )


def _missing_value_error(key: str) -> CommandError:
    """Return the error of a command whose value libvirt does not report at the moment.

    The error class GenericError does not disable the collector that sent the command.
    """
    return CommandError("GenericError", f"libvirt's statistics have no {key}")


# --- Memory ---

KIB = 1024

_GUEST_STATS: Mapping[str, tuple[str, int]] = {
    "balloon.swap_in": ("stat-swap-in", KIB),
    "balloon.swap_out": ("stat-swap-out", KIB),
    "balloon.major_fault": ("stat-major-faults", 1),
    "balloon.minor_fault": ("stat-minor-faults", 1),
    "balloon.unused": ("stat-free-memory", KIB),
    "balloon.available": ("stat-total-memory", KIB),
    "balloon.usable": ("stat-available-memory", KIB),
    "balloon.disk_caches": ("stat-disk-caches", KIB),
    "balloon.hugetlb_pgalloc": ("stat-htlb-pgalloc", 1),
    "balloon.hugetlb_pgfail": ("stat-htlb-pgfail", 1),
}
"""QEMU's name of a statistic and the factor from libvirt's unit to QEMU's unit, by libvirt's name. libvirt rounds bytes down to KiB."""


def query_balloon_result(stats: Stats) -> CommandResult:
    """Return the result of query-balloon."""
    current = stats.get("balloon.current")
    return {"actual": current * KIB} if type(current) is int else _missing_value_error("balloon.current")


def query_memory_size_summary_result(stats: Stats, devices: DomainDevices) -> CommandResult:
    """Return the result of query-memory-size-summary; None with memory devices, because libvirt reports only the total size."""
    if devices.memory_devices:
        return None
    total = stats.get("balloon.maximum")
    return (
        {"base-memory": total * KIB, "plugged-memory": 0}
        if type(total) is int
        else _missing_value_error("balloon.maximum")
    )


def balloon_guest_stats_value(stats: Stats) -> dict[str, Any]:
    """Return the value of the balloon device's property guest-stats."""
    values = {name: value * unit for key, (name, unit) in _GUEST_STATS.items() if type(value := stats.get(key)) is int}
    return _pick_renamed(stats, {"balloon.last-update": "last-update"}) | {"stats": values}


# --- Disks ---

_BLOCK_COUNTERS: Mapping[str, str] = {
    "rd.reqs": "rd_operations",
    "rd.bytes": "rd_bytes",
    "rd.times": "rd_total_time_ns",
    "wr.reqs": "wr_operations",
    "wr.bytes": "wr_bytes",
    "wr.times": "wr_total_time_ns",
    "fl.reqs": "flush_operations",
    "fl.times": "flush_total_time_ns",
}
"""QEMU's name of each statistic of a disk by libvirt's name."""

_BLOCK_KEY = re.compile(r"block\.(\d+)\.(.+)")


def _image_stats(stats: Stats) -> dict[tuple[Any, int], dict[str, Any]]:
    """Return the statistics of each image, such as `rd.reqs`, by the disk's target and libvirt's number of the image."""
    entries: dict[str, dict[str, Any]] = {}
    for key, value in stats.items():
        if match := _BLOCK_KEY.fullmatch(key):
            entries.setdefault(match[1], {})[match[2]] = value
    return {(entry.get("name"), entry.get("backingIndex", -1)): entry for entry in entries.values()}


QEMU_BUSY_KEY = "agent.qemu_busy"
"""Key that the agent adds to a domain's statistics if the block statistics are missing. The value is True if QEMU was busy."""


def has_block_stats(stats: Stats) -> bool:
    """Return whether libvirt could query QEMU's block statistics. If QEMU was busy, libvirt lists the disks without statistics."""
    images = _image_stats(stats).values()
    return not images or any("rd.reqs" in image for image in images)


def is_every_stats_image_known(stats: Stats, devices: DomainDevices) -> bool:
    """Return whether `devices` contains every image in the statistics.

    An image is missing after a snapshot, the pivot of a mirror job or a hotplug, until the XML is read again.
    """
    return _image_stats(stats).keys() <= {
        (disk.target, layer.index) for disk in devices.disks.values() for layer in disk.layers
    }


def query_blockstats_result(stats: Stats, devices: DomainDevices) -> list[dict[str, Any]]:
    """Return the result of query-blockstats: one entry for each disk. Each entry contains the entry of its backing image."""
    images = _image_stats(stats)
    result = []
    for disk in devices.disks.values():
        backing: dict[str, Any] | None = None
        for layer in reversed(disk.layers):
            image = images.get((disk.target, layer.index), {})
            offset = _pick_renamed(image, {"allocation": "wr_highest_offset"})
            entry = _node_name(layer.format_node) | {"parent": _node_name(layer.storage_node) | {"stats": offset}}
            entry |= {"backing": backing} if backing is not None else {}
            if layer is disk.layers[0]:
                entry |= {"qdev": disk.alias, "target": disk.target, "stats": _pick_renamed(image, _BLOCK_COUNTERS)}
            backing = entry
        result.append(backing if backing is not None else {"qdev": disk.alias, "target": disk.target})
    return result


def _pick_renamed(values: Mapping[str, Any], new_keys: Mapping[str, str]) -> dict[str, Any]:
    """Return only the values whose key is in `new_keys`, each under its new key."""
    return {new_key: values[key] for key, new_key in new_keys.items() if key in values}


def _node_name(name: str | None) -> dict[str, Any]:
    return {"node-name": name} if name is not None else {}


def query_named_block_nodes_result(stats: Stats, devices: DomainDevices, sizes: FileSizes) -> list[dict[str, Any]]:
    """Return the result of query-named-block-nodes: the format node and the storage node of each image whose node names are known."""
    images = _image_stats(stats)
    result: list[dict[str, Any]] = []
    for disk in devices.disks.values():
        for depth, layer in enumerate(disk.layers):
            if layer.format_node is None:
                continue
            image = images.get((disk.target, layer.index), {})
            format_node: dict[str, Any] = {
                "file": layer.path,
                "node-name": layer.format_node,
                "drv": layer.format,
                "image": _pick_renamed(image, {"capacity": "virtual-size"}),
            }
            # libvirt does not report whether a backing image or a storage node is read-only.
            format_node |= {"ro": disk.read_only} if depth == 0 else {}
            format_node |= {"backing_file_depth": len(disk.layers) - depth - 1} if disk.is_chain_complete else {}
            storage_node = {
                "file": layer.path,
                "node-name": layer.storage_node,
                "drv": layer.protocol,
                "image": _storage_size(image, layer, sizes.get(disk.target) if depth == 0 else None),
                "backing_file_depth": 0,
            }
            result += format_node, storage_node | _write_threshold(image)
    return result


def _write_threshold(image: Mapping[str, Any]) -> dict[str, Any]:
    """Return the write threshold of an image, 0 if no threshold is set; empty if libvirt could not query the image."""
    if "threshold" in image:
        return {"write_threshold": image["threshold"]}
    return {"write_threshold": 0} if "capacity" in image else {}


def is_write_threshold_reported(node: str, data: "FetchedDomainData") -> bool:
    """Return whether libvirt reports the write threshold of a storage node: a value, or that no threshold is set."""
    nodes = query_named_block_nodes_result(data.stats, data.devices, {})
    return any(entry["node-name"] == node and "write_threshold" in entry for entry in nodes)


def _storage_size(image: Mapping[str, Any], layer: ImageLayer, file_size: tuple[int, int] | None) -> dict[str, Any]:
    """Return the `image` of a storage node: allocated bytes, and the size in bytes, rounded up to sectors of 512 bytes.

    For a file, libvirt's `physical` is QEMU's `actual-size`. For a block device, `physical` is the size of the device.
    """
    if file_size is not None:
        allocated, size = file_size
        return {"actual-size": allocated, "virtual-size": -(-size // 512) * 512}
    return _pick_renamed(image, {"physical": "virtual-size" if layer.protocol == "host_device" else "actual-size"})


# --- Commands ---


@dataclass(frozen=True, slots=True)
class FetchedDomainData:
    """libvirt's data about a domain, from which `build_qmp_result` makes the results of QMP commands.

    Attributes:
        uuid: the domain's UUID.
        name: the domain's name.
        stats: the domain's statistics, of the groups that the commands need.
        devices: the domain's devices.
        sizes: sizes of the disks that are files; empty if no command needs them.
        stats_error: why the statistics are missing; None if `stats` is complete.
        devices_error: why the devices are missing; None if `devices` is complete.
    """

    uuid: str
    name: str
    stats: Stats
    devices: DomainDevices
    sizes: FileSizes
    stats_error: QmpError | None = None
    devices_error: QmpError | None = None


_STATS_INTERVAL_PROPERTY = "guest-stats-polling-interval"


def _qom_get_result(data: FetchedDomainData, arguments: Mapping[str, Any]) -> Any:
    """Return the result of qom-get for the properties that the agent reads; None for any other property."""
    match arguments.get("property"):
        case "guest-stats":
            return balloon_guest_stats_value(data.stats)
        case name if name == _STATS_INTERVAL_PROPERTY:
            return data.devices.stats_interval_seconds
        case "name":
            return GUEST_AGENT_PORT if data.devices.guest_agent is not None else None
        case "chardev":
            return f"char{data.devices.guest_agent[0]}" if data.devices.guest_agent is not None else None
    return None


def _qom_list_result(data: FetchedDomainData, arguments: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return the result of qom-list at /machine/peripheral with only the devices that the agent needs."""
    if arguments.get("path") != "/machine/peripheral":
        return []
    children = [data.devices.balloon] if data.devices.balloon is not None else []
    if data.devices.guest_agent is not None:
        children.append((data.devices.guest_agent[0], "virtserialport"))
    return [{"name": alias, "type": f"child<{type_}>"} for alias, type_ in children]


def _query_chardev_result(data: FetchedDomainData) -> list[dict[str, Any]]:
    """Return the result of query-chardev with only the guest agent's channel. libvirt is the client of this channel."""
    if data.devices.guest_agent is None:
        return []
    alias, connected = data.devices.guest_agent
    return [{"label": f"char{alias}", "frontend-open": connected}]


_TRANSLATORS: Mapping[str, Callable[[FetchedDomainData, Mapping[str, Any]], Any]] = {
    "query-uuid": lambda data, _: {"UUID": data.uuid},
    "query-name": lambda data, _: {"name": data.name},
    "query-status": lambda data, _: query_status_result(data.stats),
    "query-balloon": lambda data, _: query_balloon_result(data.stats) if data.devices.balloon is not None else None,
    "query-memory-size-summary": lambda data, _: query_memory_size_summary_result(data.stats, data.devices),
    "query-memory-devices": lambda data, _: None if data.devices.memory_devices else [],
    "query-blockstats": lambda data, _: query_blockstats_result(data.stats, data.devices),
    "query-named-block-nodes": lambda data, _: query_named_block_nodes_result(data.stats, data.devices, data.sizes),
    # libvirt enables this capability in every QEMU that supports it.
    "query-migrate-capabilities": lambda _data, _: [{"capability": "events", "state": True}],
    "query-chardev": lambda data, _: _query_chardev_result(data),
    "qom-list": _qom_list_result,
    "qom-get": _qom_get_result,
}

_STATS_GROUPS: Mapping[str, str] = {
    "query-status": "STATE",
    "query-balloon": "BALLOON",
    "query-memory-size-summary": "BALLOON",
    "qom-get": "BALLOON",
    "query-blockstats": "BLOCK",
    "query-named-block-nodes": "BLOCK",
    "block-set-write-threshold": "BLOCK",
}

DEVICE_REFRESH_COMMANDS = frozenset({"qom-list", "query-chardev", "query-named-block-nodes"})
"""Commands that the agent sends after devices may have changed. The executor reads the XML again for these commands."""


_DEVICE_COMMANDS = frozenset(
    {
        "query-balloon",
        "query-memory-size-summary",
        "query-memory-devices",
        "query-blockstats",
        "query-named-block-nodes",
        "query-chardev",
        "qom-list",
        "qom-get",
        "block-set-write-threshold",
    }
)


def stats_groups(commands: Iterable[Command]) -> set[str]:
    """Return the groups of statistics that commands need, as the names of VIR_DOMAIN_STATS_* without this prefix."""
    return {group for command in commands if (group := _stats_group_of(command)) is not None}


def _stats_group_of(command: Command) -> str | None:
    return (
        None
        if (command.arguments or {}).get("property") in (_STATS_INTERVAL_PROPERTY, "name", "chardev")
        else _STATS_GROUPS.get(command.name)
    )


def needs_devices(command: Command) -> bool:
    """Return whether a command needs the domain's devices."""
    return command.name in _DEVICE_COMMANDS


def build_qmp_result(command: Command, data: FetchedDomainData) -> CommandResult:
    """Return a command's result from libvirt's data, or an error if the data is missing; None if libvirt does not report the result."""
    translator = _TRANSLATORS.get(command.name)
    if translator is None:
        return None
    if data.stats_error is not None and _stats_group_of(command) is not None:
        return data.stats_error
    if data.devices_error is not None and needs_devices(command):
        return data.devices_error
    return translator(data, command.arguments or {})
