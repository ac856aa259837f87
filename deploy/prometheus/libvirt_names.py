"""Generator of recording rules that give the agent's series the names of two exporters for libvirt.

`python -m deploy.prometheus.libvirt_names debian|tinkoff` writes a rules file to standard output. Both exporters descend from kumina's
libvirt-exporter. They share most names of series, but not the labels. So a Prometheus must load only one of the two files.
"""

import argparse
import sys
from collections.abc import Iterator
from dataclasses import dataclass

VM_LABELS = ("instance", "job", "vm_uuid")


@dataclass(frozen=True, slots=True)
class Dialect:
    """Metric names and labels of one exporter.

    Attributes:
        exporter: name of the exporter.
        vm: labels of a domain's series. The series of an interface also have the label target_device.
        disk: labels of a disk's series.
        state: name of the series with a domain's state.
        is_extended: whether the exporter also has series with times, sizes and the guest's memory.
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
        "Tinkoff's libvirt-exporter, and the part of inovex's libvirt-exporter that agrees with it",
        ("domain",),
        ("domain", "target_device"),
        "libvirt_domain_info_vstate",
        is_extended=True,
    ),
}

_DISK_SERIES = {
    "read_bytes_total": "qemu_block_read_bytes_total",
    "read_requests_total": "qemu_block_reads_total",
    "write_bytes_total": "qemu_block_write_bytes_total",
    "write_requests_total": "qemu_block_writes_total",
}
_EXTENDED_DISK_SERIES = {
    "read_time_seconds_total": "qemu_block_read_seconds_total",
    "write_time_seconds_total": "qemu_block_write_seconds_total",
    "flush_requests_total": "qemu_block_flushes_total",
    "flush_time_seconds_total": "qemu_block_flush_seconds_total",
    "allocation": "qemu_block_storage_write_highest_offset_bytes",
    "capacity_bytes": 'qemu_block_layer_size_bytes{layer="format"}',
    "physicalsize_bytes": 'qemu_block_layer_size_bytes{layer="storage"}',
}
_INTERFACE_SERIES = {
    f"{direction}_{counter}_total": f"qemu_net_{direction}_{counter}_total"
    for direction in ("receive", "transmit")
    for counter in ("bytes", "packets", "errors", "drops")
}
_GUEST_MEMORY = "(qemu_memory_base_bytes + qemu_memory_plugged_bytes)"
_VM_SERIES = {
    "info_maximum_memory_bytes": _GUEST_MEMORY,
    "info_memory_usage_bytes": f"(qemu_balloon_actual_bytes or {_GUEST_MEMORY})",
    "info_virtual_cpus": "count by (instance, job, vm_uuid) (qemu_vcpu_cpu_seconds_total)",
    "info_cpu_time_seconds_total": "(qemu_process_user_seconds_total + qemu_process_system_seconds_total)",
}
_TOTAL, _AVAILABLE = "qemu_guest_memory_total_bytes", "qemu_guest_memory_available_bytes"
_EXTENDED_VM_SERIES = {
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
"""QEMU's run states, as a regular expression, by virDomainState."""


def generate_rules(dialect: Dialect) -> Iterator[tuple[str, str]]:
    """Yield the name and the expression of each rule, in the order of evaluation."""
    disk = (*VM_LABELS, "device")
    with_labels = _copy_labels("qemu_vm_up * 0 + 1", vm="domain", vm_uuid="uuid")
    yield "qemu:libvirt_domain", f"sum by ({', '.join((*VM_LABELS, *dialect.vm))}) ({with_labels})"
    yield "libvirt_up", 'max by (instance, job) (up{job="qmp-agent"})'
    if not dialect.is_extended:
        yield "libvirt_domains_number", "count by (instance, job) (qemu_vm_up)"
    states = " or ".join(f'qemu_runstate_status{{status=~"{words}"}} * {code}' for code, words in _STATES.items())
    yield dialect.state, _join_labels(f"({states})", VM_LABELS, dialect.vm, "qemu:libvirt_domain", "vm", "status")
    for name, expression in (_VM_SERIES | (_EXTENDED_VM_SERIES if dialect.is_extended else {})).items():
        yield f"libvirt_domain_{name}", _join_labels(expression, VM_LABELS, dialect.vm, "qemu:libvirt_domain", "vm")
    # The label target_device is libvirt's target, such as vda, if the agent polls over libvirt. Otherwise it is the device id.
    targets = "(qemu_block_target or on (instance, job, vm_uuid, device) qemu_block_reads_total * 0 + 1)"
    target = _copy_labels(_copy_labels(targets, device="target_device"), target="target_device")
    if "source_file" in dialect.disk:
        path = _copy_labels('qemu_block_layer_path{layer="storage"}', path="source_file")
        target = f"{target} * on ({', '.join(disk)}) group_left (source_file) {path}"
    with_labels = f"{target} * on ({', '.join(VM_LABELS)}) group_left ({', '.join(dialect.vm)}) qemu:libvirt_domain"
    yield "qemu:libvirt_disk", f"sum by ({', '.join((*disk, *dialect.disk))}) ({with_labels})"
    for name, expression in (_DISK_SERIES | (_EXTENDED_DISK_SERIES if dialect.is_extended else {})).items():
        without = ("vm", "device", "layer") if "layer=" in expression else ("vm", "device")
        yield (
            f"libvirt_domain_block_stats_{name}",
            _join_labels(expression, disk, dialect.disk, "qemu:libvirt_disk", *without),
        )
    for name, expression in _INTERFACE_SERIES.items():
        with_labels = _copy_labels(expression, interface="target_device")
        yield (
            f"libvirt_domain_interface_stats_{name}",
            _join_labels(with_labels, VM_LABELS, dialect.vm, "qemu:libvirt_domain", "vm", "interface"),
        )


def _copy_labels(expression: str, **labels: str) -> str:
    """Return an expression that copies labels that are not empty. `labels` has the new name by the old name."""
    for old, new in labels.items():
        expression = f'label_replace({expression}, "{new}", "$1", "{old}", "(.+)")'
    return expression


def _join_labels(expression: str, on: tuple[str, ...], labels: tuple[str, ...], by: str, *without: str) -> str:
    """Return an expression that adds labels of another series and removes the agent's own labels.

    Args:
        expression: the series to relabel.
        on: labels that the two series are matched on.
        labels: labels to take from the other series.
        by: the other series.
        without: labels to remove, in addition to vm_uuid.
    """
    return f"sum without (vm_uuid, {', '.join(without)}) ({expression} * on ({', '.join(on)}) group_left ({', '.join(labels)}) {by})"


def rules_file(name: str) -> str:
    """Return the rules file of a dialect."""
    dialect = DIALECTS[name]
    lines = [
        "# Generated by `make generate` from deploy/prometheus/libvirt_names.py. Do not edit.",
        f"# Names and labels of {dialect.exporter}, for its dashboards. Load only one of the libvirt-names files.",
        "groups:",
        f"  - name: libvirt-names-{name}",
        "    rules:",
    ]
    for record, expression in generate_rules(dialect):
        lines += [f"      - record: {record}", "        expr: >-", f"          {expression}"]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("dialect", choices=DIALECTS)
    sys.stdout.write(rules_file(parser.parse_args().dialect))
