"""Recording rules that give the agent's series the names of libvirt's exporters: `python -m deploy.prometheus.libvirt_names debian`.

Both exporters descend from kumina's and share most names, but not the labels. A Prometheus loads one of the two files.
"""

import argparse
import sys
from collections.abc import Iterator
from dataclasses import dataclass

VM = ("instance", "job", "vm_uuid")


@dataclass(frozen=True, slots=True)
class Dialect:
    """Metric names and labels of one exporter.

    Attributes:
        exporter: Name of the exporter.
        vm, disk: Labels of a domain's and a disk's series. An interface has its domain's labels and target_device.
        state: Name of the series of a domain's state.
        is_extended: Whether it also has times, sizes and the guest's memory.
    """

    exporter: str
    vm: tuple[str, ...]
    disk: tuple[str, ...]
    state: str
    is_extended: bool


DIALECTS = {
    "debian": Dialect(
        "Debian's prometheus-libvirt-exporter (0.2) and others of kumina's form",
        ("domain", "uuid"),
        ("domain", "uuid", "source_file", "target_device"),
        "libvirt_domain_state_code",
        is_extended=False,
    ),
    "tinkoff": Dialect(
        "Tinkoff's libvirt-exporter, and inovex' where the two agree",
        ("domain",),
        ("domain", "target_device"),
        "libvirt_domain_info_vstate",
        is_extended=True,
    ),
}

_DISK = {
    "read_bytes_total": "qemu_block_read_bytes_total",
    "read_requests_total": "qemu_block_reads_total",
    "write_bytes_total": "qemu_block_write_bytes_total",
    "write_requests_total": "qemu_block_writes_total",
}
_DISK_MORE = {
    "read_time_seconds_total": "qemu_block_read_seconds_total",
    "write_time_seconds_total": "qemu_block_write_seconds_total",
    "flush_requests_total": "qemu_block_flushes_total",
    "flush_time_seconds_total": "qemu_block_flush_seconds_total",
    "allocation": "qemu_block_storage_write_highest_offset_bytes",
    "capacity_bytes": 'qemu_block_layer_size_bytes{layer="format"}',
    "physicalsize_bytes": 'qemu_block_layer_size_bytes{layer="storage"}',
}
_INTERFACE = {
    f"{way}_{what}_total": f"qemu_net_{way}_{what}_total"
    for way in ("receive", "transmit")
    for what in ("bytes", "packets", "errors", "drops")
}
_GIVEN = "(qemu_memory_base_bytes + qemu_memory_plugged_bytes)"
_VM = {
    "info_maximum_memory_bytes": _GIVEN,
    "info_memory_usage_bytes": f"(qemu_balloon_actual_bytes or {_GIVEN})",
    "info_virtual_cpus": "count by (instance, job, vm_uuid) (qemu_vcpu_cpu_seconds_total)",
    "info_cpu_time_seconds_total": "(qemu_process_user_seconds_total + qemu_process_system_seconds_total)",
}
_TOTAL, _AVAILABLE = "qemu_guest_memory_total_bytes", "qemu_guest_memory_available_bytes"
_VM_MORE = {
    "memory_stats_major_fault_total": "qemu_guest_memory_major_faults_total",
    "memory_stats_minor_fault_total": "qemu_guest_memory_minor_faults_total",
    "memory_stats_unused_bytes": "qemu_guest_memory_free_bytes",
    "memory_stats_available_bytes": _TOTAL,
    "memory_stats_actual_balloon_bytes": "qemu_balloon_actual_bytes",
    "memory_stats_rss_bytes": "qemu_process_resident_bytes",
    "memory_stats_usable_bytes": _AVAILABLE,
    "memory_stats_disk_cache_bytes": "qemu_guest_memory_disk_cache_bytes",
    "memory_stats_used_percent": f"(100 * ({_TOTAL} - {_AVAILABLE}) / {_TOTAL})",
}

_STATES = {
    1: "running",
    3: "paused|prelaunch|io-error|watchdog|internal-error|colo|debug|inmigrate|postmigrate|finish-migrate|save-vm|restore-vm",
    5: "shutdown",
    6: "guest-panicked",
    7: "suspended",
}
"""virDomainState by QEMU's run states."""


def rules(dialect: Dialect) -> Iterator[tuple[str, str]]:
    """Yield the names and expressions of the rules, in evaluation order."""
    disk = (*VM, "device")
    named = _renamed("qemu_vm_up * 0 + 1", vm="domain", vm_uuid="uuid")
    yield "qemu:libvirt_domain", f"sum by ({', '.join((*VM, *dialect.vm))}) ({named})"
    yield "libvirt_up", 'max by (instance, job) (up{job="qmp-agent"})'
    if not dialect.is_extended:
        yield "libvirt_domains_number", "count by (instance, job) (qemu_vm_up)"
    states = " or ".join(f'qemu_runstate_status{{status=~"{words}"}} * {code}' for code, words in _STATES.items())
    yield dialect.state, _joined(f"({states})", VM, dialect.vm, "qemu:libvirt_domain", "vm", "status")
    for name, expression in (_VM | (_VM_MORE if dialect.is_extended else {})).items():
        yield f"libvirt_domain_{name}", _joined(expression, VM, dialect.vm, "qemu:libvirt_domain", "vm")
    # libvirt's target where the agent gets it from libvirt; otherwise the device id, such as virtio-disk0 for vda.
    targets = "(qemu_block_target or on (instance, job, vm_uuid, device) qemu_block_reads_total * 0 + 1)"
    target = _renamed(_renamed(targets, device="target_device"), target="target_device")
    if "source_file" in dialect.disk:
        path = _renamed('qemu_block_layer_path{layer="storage"}', path="source_file")
        target = f"{target} * on ({', '.join(disk)}) group_left (source_file) {path}"
    named = f"{target} * on ({', '.join(VM)}) group_left ({', '.join(dialect.vm)}) qemu:libvirt_domain"
    yield "qemu:libvirt_disk", f"sum by ({', '.join((*disk, *dialect.disk))}) ({named})"
    for name, expression in (_DISK | (_DISK_MORE if dialect.is_extended else {})).items():
        without = ("vm", "device", "layer") if "layer=" in expression else ("vm", "device")
        yield (
            f"libvirt_domain_block_stats_{name}",
            _joined(expression, disk, dialect.disk, "qemu:libvirt_disk", *without),
        )
    for name, expression in _INTERFACE.items():
        named = _renamed(expression, interface="target_device")
        yield (
            f"libvirt_domain_interface_stats_{name}",
            _joined(named, VM, dialect.vm, "qemu:libvirt_domain", "vm", "interface"),
        )


def _renamed(expression: str, **labels: str) -> str:
    """Return an expression that copies labels to other names where they are not empty."""
    for old, new in labels.items():
        expression = f'label_replace({expression}, "{new}", "$1", "{old}", "(.+)")'
    return expression


def _joined(expression: str, on: tuple[str, ...], labels: tuple[str, ...], by: str, *without: str) -> str:
    """Return an expression that takes the labels of `by` and drops the agent's own."""
    return f"sum without (vm_uuid, {', '.join(without)}) ({expression} * on ({', '.join(on)}) group_left ({', '.join(labels)}) {by})"


def build(name: str) -> str:
    """Return the rules file of a dialect."""
    dialect = DIALECTS[name]
    lines = [
        "# Generated by `make generate` from deploy/prometheus/libvirt_names.py. Do not edit.",
        f"# Names and labels of {dialect.exporter}, for its dashboards. Load this file or the other one, not both.",
        "groups:",
        f"  - name: libvirt-names-{name}",
        "    rules:",
    ]
    for record, expression in rules(dialect):
        lines += [f"      - record: {record}", "        expr: >-", f"          {expression}"]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("dialect", choices=DIALECTS)
    sys.stdout.write(build(parser.parse_args().dialect))
