"""Computes the summary of one VM for the page and `qmp-agent top`. Pure.

The values come from families that may be absent. An unknown value is None or left out.
"""

from collections.abc import Mapping
from typing import Any

from agent.exposition.rates import PollPair
from agent.model.family import FieldValues
from agent.model.metrics.migration import INACTIVE_STATUSES

Polls = Mapping[str, PollPair]
"""The last two polls of each family of a VM, by family name."""


_COUNTERS = {
    "read": "read_bytes_total",
    "write": "write_bytes_total",
    "reads": "reads_total",
    "writes": "writes_total",
}
"""A disk's counters, by the names of their rates in the summary."""
_TIMES = ("read_seconds_total", "write_seconds_total")
_NET = {"receive": "receive_bytes_total", "transmit": "transmit_bytes_total"}


def current_vm_resource_usage(polls: Polls) -> dict[str, float]:
    """Return a VM's activity between its last two polls. Leave out unknown values.

    `time`: time of the last poll of the disks, in seconds since the epoch.
    `cpu`: host CPUs that the vCPUs used.
    `steal`: host CPUs that the vCPUs waited for.
    `read`, `write`, `receive`, `transmit`: bytes per second.
    `reads`, `writes`: operations per second.
    `latency`: mean duration of an operation in seconds.
    `memory`: used bytes that the guest reports. If unknown, resident bytes of QEMU's process.
    """
    block, net = (polls.get(family) or PollPair() for family in ("block", "net"))
    rates = block.total_rates((*_COUNTERS.values(), *_TIMES))
    known = [rates[name] for name in ("reads_total", "writes_total") if name in rates]
    seconds = sum(rates.get(name, 0.0) for name in _TIMES)
    sizes = memory_sizes(polls)
    activity = {
        "time": block.time_ns / 1e9,
        "cpu": used_cpus(polls),
        "steal": polls["vcpu"].total_rate("run_delay_seconds_total") if "vcpu" in polls else None,
        **{name: rates.get(counter) for name, counter in _COUNTERS.items()},
        "latency": seconds / sum(known) if sum(known) and any(name in rates for name in _TIMES) else None,
        **{name: net.total_rate(counter) for name, counter in _NET.items()},
        "memory": sizes.get("used_bytes", sizes.get("resident_bytes")),
    }
    return {name: value for name, value in activity.items() if value is not None}


def used_cpus(polls: Polls) -> float | None:
    """Return how many host CPUs the VM's vCPUs use; None if unknown."""
    return polls["vcpu"].total_rate("cpu_seconds_total") if "vcpu" in polls else None


def memory_sizes(polls: Polls) -> dict[str, float]:
    """Return the known sizes of a VM's memory in bytes: `total_bytes`, the guest's `used_bytes`, and the process's `resident_bytes`."""
    guest, balloon, process = (_vm_level_values(polls, family) for family in ("guest_memory", "balloon", "process"))
    sizes = {"resident_bytes": process["resident_bytes"]} if "resident_bytes" in process else {}
    total = guest.get("total_bytes", balloon.get("actual_bytes"))
    if total is not None:
        sizes["total_bytes"] = total
    if total is not None and "available_bytes" in guest:
        sizes["used_bytes"] = total - guest["available_bytes"]
    return sizes


def summarize_disks(polls: Polls) -> list[dict[str, Any]]:
    """Return the rates and the size of each disk, and for thin disks also the values of the family `block_space`."""
    block, space, layers = (polls.get(name) or PollPair() for name in ("block", "block_space", "block_layer"))
    disks = []
    for labels in block.current:
        disk: dict[str, Any] = {"device": labels[0]}
        rates = block.rates_for_labels(labels, _COUNTERS.values())
        disk |= {name: rates[counter] for name, counter in _COUNTERS.items() if counter in rates}
        size = layers.current.get((*labels, "format"), {}).get("size_bytes")
        if size is not None:
            disk["size_bytes"] = size
        disks.append(disk | space.current.get(labels, {}))
    return disks


def summarize_migration(polls: Polls) -> dict[str, Any] | None:
    """Return the status, progress and remaining time of the current or last migration; None for a VM without a migration."""
    values = _vm_level_values(polls, "migration")
    if values.get("status", "none") == "none":
        return None
    names = ("status", "elapsed_seconds", "throughput_bytes_per_second", "expected_downtime_seconds", "passes_total")
    result = {name: values[name] for name in (*names, "remaining_seconds") if name in values}
    remaining, total = values.get("ram_remaining_bytes"), values.get("ram_bytes")
    if remaining is not None and total and values["status"] not in INACTIVE_STATUSES:
        result |= {"done_bytes": max(0, total - remaining), "total_bytes": total}
    return result


def summarize_jobs(polls: Polls) -> list[dict[str, Any]]:
    """Return the status, progress and remaining time of each job."""
    job_polls = polls.get("job") or PollPair()
    names = ("status", "error", "progress_ratio", "remaining_seconds")
    return [
        {"job": job, "type": kind} | {name: values[name] for name in names if name in values}
        for (job, kind), values in job_polls.current.items()
    ]


_CHANNEL_STATES: Mapping[Any, str] = {True: "connected", False: "absent"}
"""State of a guest agent that the agent does not query. The key is True if the guest has opened the virtio-serial port."""


def summarize_guest(polls: Polls) -> dict[str, Any]:
    """Return the known values from the guest agent: its state, the operating system, the addresses and the file systems."""
    channel, session, system = (_vm_level_values(polls, f"guest_{name}") for name in ("agent", "agent_session", "os"))
    filesystems = polls["guest_filesystem"].current if "guest_filesystem" in polls else {}
    addresses = polls["guest_address"].current.values() if "guest_address" in polls else ()
    parts: dict[str, Any] = {
        "agent": session.get("state", _CHANNEL_STATES.get(channel.get("connected", ""))),
        "reason": session.get("reason"),
        "frozen": _vm_level_values(polls, "guest_freeze").get("frozen"),
        "hostname": system.get("hostname"),
        "system": system.get("name"),
        "kernel": system.get("kernel"),
        "addresses": [values[kind] for values in addresses for kind in ("ipv4", "ipv6") if kind in values],
        "filesystems": [
            {"mountpoint": mountpoint, "device": device, "type": kind}
            | {name: values[name] for name in ("used_bytes", "size_bytes") if name in values}
            for (mountpoint, device, kind), values in filesystems.items()
        ],
    }
    return {name: value for name, value in parts.items() if value}


def summarize_vm(polls: Polls) -> dict[str, Any]:
    """Return the summary of a VM, without unknown values."""
    parts: dict[str, Any] = {
        "now": current_vm_resource_usage(polls),
        "memory": memory_sizes(polls),
        "disks": summarize_disks(polls),
        "migration": summarize_migration(polls),
        "jobs": summarize_jobs(polls),
        "guest": summarize_guest(polls),
        "vcpus": len(polls["vcpu"].current) if "vcpu" in polls else 0,
        "labels": _vm_level_values(polls, "identity").get("labels"),
    }
    return {name: value for name, value in parts.items() if value} | _vm_level_values(polls, "runstate")


def _vm_level_values(polls: Polls, family: str) -> FieldValues:
    """Return the values of a family that describes the VM as a whole."""
    return polls[family].current.get((), {}) if family in polls else {}
