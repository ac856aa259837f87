"""What libvirt says, in QEMU's words: its statistics and its devices as the answers that QEMU would give. Pure.

libvirt asks QEMU the same questions and tells part of the answers under names and in units of its own; these tables turn them back, so
that all that is made of an answer (samples, series, alerts) is made in one place. What libvirt does not tell is not in the answer.
"""

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from agent.monitors.libvirt.devices import Devices
from agent.qmp.commands import Command

Stats = Mapping[str, Any]
"""A domain's statistics as virConnectGetAllDomainStats gives them: `block.0.rd.reqs` and the like."""


Files = Mapping[str, tuple[int, int]]
"""By target, of a disk that is a file: how many bytes of its file system it takes, and how large it is."""


# --- Whether the guest runs ---

_STATES = {1: "running", 2: "io-error", 3: "paused", 4: "shutdown", 5: "shutdown", 6: "guest-panicked", 7: "suspended"}
"""virDomainState; 2 (blocked) is Xen's and never QEMU's."""

_PAUSED = {
    2: "finish-migrate",
    3: "save-vm",
    5: "io-error",
    6: "watchdog",
    8: "internal-error",
    9: "restore-vm",
    10: "guest-panicked",
    11: "inmigrate",
}
"""virDomainPausedReason, where QEMU has a word of its own for it."""


RUNNING = {"status": "running", "running": True}
"""query-status' answer of a guest that runs."""


def status(stats: Stats) -> dict[str, Any]:
    """Return query-status' answer, as near as libvirt tells it."""
    state = stats.get("state.state")
    word = _STATES.get(state, "") if isinstance(state, int) else ""
    if word == "paused":
        word = _PAUSED.get(stats.get("state.reason", 0), word)
    return {"status": word, "running": word == "running"} if word else {}


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
"""libvirt's name, QEMU's name, and how many of QEMU's units one of libvirt's is. libvirt rounds bytes down to KiB."""


def balloon(stats: Stats) -> dict[str, Any]:
    """Return query-balloon's answer."""
    current = stats.get("balloon.current")
    return {"actual": current * KIB} if type(current) is int else {}


def memory(stats: Stats, having: Devices) -> dict[str, Any]:
    """Return query-memory-size-summary's answer: libvirt tells the sum, which is the base where nothing is plugged."""
    most = stats.get("balloon.maximum")
    return {"base-memory": most * KIB, "plugged-memory": 0} if type(most) is int and not having.memory_devices else {}


def guest_stats(stats: Stats) -> dict[str, Any]:
    """Return a balloon's guest-stats."""
    told = {name: value * unit for key, (name, unit) in _GUEST_STATS.items() if type(value := stats.get(key)) is int}
    return {"last-update": stats.get("balloon.last-update", 0), "stats": told}


# --- Disks ---

_BLOCK: Mapping[str, str] = {
    "rd.reqs": "rd_operations",
    "rd.bytes": "rd_bytes",
    "rd.times": "rd_total_time_ns",
    "wr.reqs": "wr_operations",
    "wr.bytes": "wr_bytes",
    "wr.times": "wr_total_time_ns",
    "fl.reqs": "flush_operations",
    "fl.times": "flush_total_time_ns",
}
"""libvirt's name and QEMU's, of what the guest did to a disk."""

_ENTRY = re.compile(r"block\.(\d+)\.(.+)")


def _images(stats: Stats) -> dict[tuple[Any, int], dict[str, Any]]:
    """Return the `block` statistics of each image (`rd.reqs` and so on), by the disk's target and libvirt's number of the image."""
    found: dict[str, dict[str, Any]] = {}
    for key, value in stats.items():
        if match := _ENTRY.fullmatch(key):
            found.setdefault(match[1], {})[match[2]] = value
    return {(image.get("name"), image.get("backingIndex", -1)): image for image in found.values()}


OCCUPIED = "agent.occupied"
"""Our own addition to the statistics of a domain that was not asked: whether somebody's command to its QEMU was under way."""


def asked(stats: Stats) -> bool:
    """Return whether libvirt has asked QEMU: where it could not without waiting, it names the disks but tells nothing of them."""
    images = _images(stats).values()
    return not images or any("rd.reqs" in image for image in images)


def known(stats: Stats, having: Devices) -> bool:
    """Return whether the devices are those that the statistics are about: a snapshot, a mirror's pivot or a plug makes others."""
    return _images(stats).keys() <= {
        (disk.target, layer.index) for disk in having.disks.values() for layer in disk.layers
    }


def blockstats(stats: Stats, having: Devices) -> list[dict[str, Any]]:
    """Return query-blockstats' answer: a disk each, its backing images inside."""
    images = _images(stats)
    answer = []
    for disk in having.disks.values():
        inner: dict[str, Any] | None = None
        for layer in reversed(disk.layers):
            told = images.get((disk.target, layer.index), {})
            item: dict[str, Any] = {"node-name": layer.format_node}
            item["parent"] = {
                "node-name": layer.storage_node,
                "stats": _only(told, {"allocation": "wr_highest_offset"}),
            }
            item |= {"backing": inner} if inner is not None else {}
            if layer is disk.layers[0]:
                item |= {"qdev": disk.alias, "target": disk.target, "stats": _only(told, _BLOCK)}
            inner = item
        answer.append(inner if inner is not None else {"qdev": disk.alias, "target": disk.target})
    return answer


def _only(told: Mapping[str, Any], names: Mapping[str, str]) -> dict[str, Any]:
    return {name: told[key] for key, name in names.items() if key in told}


def block_nodes(stats: Stats, having: Devices, files: Files) -> list[dict[str, Any]]:
    """Return query-named-block-nodes' answer."""
    images = _images(stats)
    answer: list[dict[str, Any]] = []
    for disk in having.disks.values():
        for depth, layer in enumerate(disk.layers):
            told = images.get((disk.target, layer.index), {})
            below = len(disk.layers) - depth - 1
            same = {"file": layer.path}
            size = _only(told, {"capacity": "virtual-size"})
            seen = {"node-name": layer.format_node, "drv": layer.format, "image": size, "backing_file_depth": below}
            # Whether QEMU may write to a storage node is QEMU's own affair, and libvirt does not tell.
            answer.append(same | seen | {"ro": disk.read_only or depth > 0})
            image = _only(told, {"physical": "actual-size" if layer.protocol == "file" else "virtual-size"})
            if depth == 0 and disk.target in files:
                image = {"actual-size": files[disk.target][0], "virtual-size": -(-files[disk.target][1] // 512) * 512}
            storage = {"node-name": layer.storage_node, "drv": layer.protocol, "image": image, "backing_file_depth": 0}
            answer.append(same | storage | {"write_threshold": told.get("threshold", 0)})
    return answer


# --- Questions ---


@dataclass(frozen=True, slots=True)
class DomainSnapshot:
    """What is known of a domain when it is asked.

    Attributes:
        uuid, name: whose.
        stats: its statistics, as far as they were needed.
        devices: what it has.
        files: of the disks that are files, as far as it was needed.
    """

    uuid: str
    name: str
    stats: Stats
    devices: Devices
    files: Files


_PERIOD = "guest-stats-polling-interval"


def _property(look: DomainSnapshot, given: Mapping[str, Any]) -> Any:
    match given.get("property"):
        case "guest-stats":
            return guest_stats(look.stats)
        case name if name == _PERIOD:
            return look.devices.period_seconds
    return None


def _children(look: DomainSnapshot, given: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return qom-list's answer for the devices that have ids, as far as anybody asks: the balloon."""
    if given.get("path") != "/machine/peripheral" or look.devices.balloon is None:
        return []
    alias, kind = look.devices.balloon
    return [{"name": alias, "type": f"child<{kind}>"}]


_ANSWERS: Mapping[str, Callable[[DomainSnapshot, Mapping[str, Any]], Any]] = {
    "query-uuid": lambda look, _: {"UUID": look.uuid},
    "query-name": lambda look, _: {"name": look.name},
    "query-status": lambda look, _: status(look.stats),
    "query-balloon": lambda look, _: balloon(look.stats) if look.devices.balloon is not None else None,
    "query-memory-size-summary": lambda look, _: memory(look.stats, look.devices) or None,
    "query-memory-devices": lambda look, _: None if look.devices.memory_devices else [],
    "query-blockstats": lambda look, _: blockstats(look.stats, look.devices),
    "query-named-block-nodes": lambda look, _: block_nodes(look.stats, look.devices, look.files),
    # libvirt switches them on in every QEMU that has them.
    "query-migrate-capabilities": lambda _look, _: [{"capability": "events", "state": True}],
    "qom-list": _children,
    "qom-get": _property,
}

_GROUPS: Mapping[str, str] = {
    "query-status": "STATE",
    "query-balloon": "BALLOON",
    "query-memory-size-summary": "BALLOON",
    "qom-get": "BALLOON",
    "query-blockstats": "BLOCK",
    "query-named-block-nodes": "BLOCK",
}

FRESH = frozenset({"qom-list", "query-named-block-nodes"})
"""Questions that are asked when devices may have changed."""


def groups(asks: Iterable[Command]) -> set[str]:
    """Return the groups of statistics that questions take, as libvirt calls them: VIR_DOMAIN_STATS_*."""
    return {
        _GROUPS[ask.name] for ask in asks if ask.name in _GROUPS and (ask.arguments or {}).get("property") != _PERIOD
    }


def answer(ask: Command, look: DomainSnapshot) -> Any:
    """Return QEMU's answer to a question, as far as libvirt tells it; None where it does not."""
    tells = _ANSWERS.get(ask.name)
    return tells(look, ask.arguments or {}) if tells is not None else None
