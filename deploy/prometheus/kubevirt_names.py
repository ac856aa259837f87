"""Generator of recording rules that give the agent's series the names and labels of KubeVirt's metrics of VMs.

`python -m deploy.prometheus.kubevirt_names` writes the rules file to standard output. The names are those of KubeVirt 1.7
(docs/observability/metrics.md in its repository). The rules concern the VMs that have the labels `namespace` and `name`: see
"KubeVirt" in docs/how-to/kubernetes.md.
"""

import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

VM = "qemu:kubevirt_vm"
"""The rule with the labels of each VM of KubeVirt."""


@dataclass(frozen=True, slots=True)
class Rules:
    """Rules with the same labels.

    Attributes:
        labels: KubeVirt's label by the agent's label, for all but the VM's own.
        series: the agent's series, as an expression, by KubeVirt's name without `kubevirt_vmi_`.
        constants: further labels with a value that is the same for all series, by KubeVirt's name.
    """

    labels: Mapping[str, str]
    series: Mapping[str, str]
    constants: Mapping[str, Mapping[str, str]] = field(default_factory=dict)


_USER, _SYSTEM = "qemu_process_user_seconds_total", "qemu_process_system_seconds_total"

RULES = (
    Rules(
        {},
        {
            "cpu_system_usage_seconds_total": _SYSTEM,
            "cpu_user_usage_seconds_total": _USER,
            "cpu_usage_seconds_total": f"({_USER} + {_SYSTEM})",
            "dirty_rate_bytes_per_second": "qemu_dirty_rate_bytes_per_second",
            "guest_load_1m": "qemu_guest_load_average_1m",
            "guest_load_5m": "qemu_guest_load_average_5m",
            "guest_load_15m": "qemu_guest_load_average_15m",
            "memory_actual_balloon_bytes": "qemu_balloon_actual_bytes",
            "memory_available_bytes": "qemu_guest_memory_total_bytes",
            "memory_cached_bytes": "qemu_guest_memory_disk_cache_bytes",
            "memory_domain_bytes": "(qemu_memory_base_bytes + qemu_memory_plugged_bytes or qemu_memory_base_bytes)",
            "memory_pgmajfault_total": "qemu_guest_memory_major_faults_total",
            "memory_pgminfault_total": "qemu_guest_memory_minor_faults_total",
            "memory_resident_bytes": "qemu_process_resident_bytes",
            "memory_swap_in_traffic_bytes": "qemu_guest_memory_swap_in_bytes_total",
            "memory_swap_out_traffic_bytes": "qemu_guest_memory_swap_out_bytes_total",
            "memory_unused_bytes": "qemu_guest_memory_free_bytes",
            "memory_usable_bytes": "qemu_guest_memory_available_bytes",
            "migration_data_bytes_total": "qemu_migration_ram_bytes",
            "migration_data_processed_bytes": "qemu_migration_ram_transferred_bytes_total",
            "migration_data_remaining_bytes": "qemu_migration_ram_remaining_bytes",
            "migration_dirty_memory_rate_bytes": "(qemu_migration_ram_dirty_pages_per_second * qemu_migration_ram_page_bytes)",
            "migration_memory_transfer_rate_bytes": "qemu_migration_throughput_bytes_per_second",
        },
    ),
    Rules(
        {"device": "drive"},
        {
            "storage_flush_requests_total": "qemu_block_flushes_total",
            "storage_flush_times_seconds_total": "qemu_block_flush_seconds_total",
            "storage_iops_read_total": "qemu_block_reads_total",
            "storage_iops_write_total": "qemu_block_writes_total",
            "storage_read_times_seconds_total": "qemu_block_read_seconds_total",
            "storage_read_traffic_bytes_total": "qemu_block_read_bytes_total",
            "storage_write_times_seconds_total": "qemu_block_write_seconds_total",
            "storage_write_traffic_bytes_total": "qemu_block_write_bytes_total",
        },
    ),
    Rules(
        {"interface": "interface"},
        {
            f"network_{direction}_{theirs}_total": f"qemu_net_{direction}_{ours}_total"
            for direction in ("receive", "transmit")
            for theirs, ours in (
                ("bytes", "bytes"),
                ("packets", "packets"),
                ("errors", "errors"),
                ("packets_dropped", "drops"),
            )
        },
    ),
    Rules(
        {"vcpu": "id"},
        {
            "vcpu_seconds_total": "qemu_vcpu_cpu_seconds_total",
            "vcpu_delay_seconds_total": "qemu_vcpu_run_delay_seconds_total",
            "vcpu_wait_seconds_total": "qemu_vcpu_block_io_delay_seconds_total",
        },
        {"vcpu_seconds_total": {"state": "running"}},
    ),
    Rules(
        {"mountpoint": "mount_point", "device": "disk_name", "type": "file_system_type"},
        {
            "filesystem_capacity_bytes": "qemu_guest_filesystem_size_bytes",
            "filesystem_used_bytes": "qemu_guest_filesystem_used_bytes",
        },
    ),
)

NOT_AVAILABLE = {
    "info": "labels of Kubernetes' API, such as the phase and the instance type",
    "gpu_info": "the agent does not read the GPUs' UUIDs",
    "guest_device_driver_date_seconds": "the agent does not query guest-get-devices",
    "guest_os_panic_total": "counted as qemu_vm_events_total; the type of the panic is in the record",
    "last_api_connection_timestamp_seconds": "a connection to Kubernetes' API",
    "launcher_memory_overhead_bytes": "an estimate of KubeVirt's own",
    "migration_end_time_seconds": "an object of Kubernetes' API; the record qemu.vm.migrated_out has the time",
    "migration_failed": "an object of Kubernetes' API; the alert migration_failed is the agent's",
    "migration_start_time_seconds": "an object of Kubernetes' API",
    "migration_succeeded": "an object of Kubernetes' API",
    "network_traffic_bytes_total": "deprecated by KubeVirt for network_receive_bytes_total and network_transmit_bytes_total",
    "node_cpu_affinity": "an object of Kubernetes' API",
    "non_evictable": "an object of Kubernetes' API",
    "number_of_outdated": "an object of Kubernetes' API",
    "status_addresses": "an object of Kubernetes' API; the record qemu.sample.guest_interface has the guest's addresses",
    "sync_total": "KubeVirt's own work",
    "vnic_info": "an object of Kubernetes' API",
}
"""KubeVirt's other series of VMs, with the reason. Those of phases and of pending migrations are about Kubernetes' objects too."""


def generate_rules() -> Iterator[tuple[str, str]]:
    """Yield the name and the expression of each rule, in the order of evaluation."""
    yield VM, 'group by (job, instance, vm_uuid, namespace, name, node) (qemu_vm_info{namespace!="",name!=""})'
    for rules in RULES:
        for name, series in rules.series.items():
            yield f"kubevirt_vmi_{name}", _expression(rules, name, series)


def _expression(rules: Rules, name: str, series: str) -> str:
    for ours, theirs in rules.labels.items():
        if ours != theirs:
            series = f'label_replace({series}, "{theirs}", "$1", "{ours}", "(.*)")'
        if theirs == "drive":
            # libvirt puts `ua-` before the aliases that KubeVirt chooses for its volumes.
            series = f'label_replace({series}, "drive", "$1", "{ours}", "ua-(.+)")'
    joined = f"{series} * on (job, instance, vm_uuid) group_left (namespace, name, node) {VM}"
    removed = ["vm", "vm_uuid", *(ours for ours, theirs in rules.labels.items() if ours != theirs)]
    expression = f"sum without ({', '.join(removed)}) ({joined})"
    for label, value in rules.constants.get(name, {}).items():
        expression = f'label_replace({expression}, "{label}", "{value}", "", "")'
    return expression


def rules_file() -> str:
    """Return the rules file."""
    lines = [
        "# Generated by `make generate` from deploy/prometheus/kubevirt_names.py. Do not edit.",
        "# Names and labels of KubeVirt's metrics of VMs. Load it only where Prometheus does not scrape KubeVirt's own.",
        "groups:",
        "  - name: kubevirt-names",
        "    rules:",
    ]
    for record, expression in generate_rules():
        lines += [f"      - record: {record}", "        expr: >-", f"          {expression}"]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    sys.stdout.write(rules_file())
