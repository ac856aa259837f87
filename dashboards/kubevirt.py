"""Dashboard of KubeVirt's VMs, by their names in Kubernetes: namespace, name, pod and node."""

from dashboards.panels import Column, Dashboard, graph_panel, number_panel, query_variable, table_panel

INFO = 'qemu_vm_info{namespace=~"$namespace",name=~"$name",name!=""}'
BY = "namespace, name, node"
NAME = "{{namespace}}/{{name}}"
JOIN = (
    f"* on (job, instance, vm_uuid) group_left (namespace, name, node) group by (job, instance, vm_uuid, {BY}) ({INFO})"
)
NONE = "no VM has labels of Kubernetes: deploy/kubernetes describes the agent on KubeVirt's nodes"


def by_vm(query: str) -> str:
    """Return a query for the sum of each VM, with its names in Kubernetes. The query keeps the labels `job`, `instance` and `vm_uuid`."""
    return f"sum by ({BY}) (({query}) {JOIN})"


def rate_by_vm(series: str) -> str:
    """Return a query for a counter's rate of each VM."""
    return by_vm(f"sum by (job, instance, vm_uuid) (rate({series}[$__rate_interval]))")


KUBEVIRT = Dashboard(
    "qemu-kubevirt",
    "QEMU on KubeVirt",
    "VMs of KubeVirt by namespace and name, with what QEMU knows: steal, latency, space, migrations and alerts.",
    (
        query_variable("namespace", "Namespace", "label_values(qemu_vm_info, namespace)", many=True),
        query_variable("name", "VM", 'label_values(qemu_vm_info{namespace=~"$namespace"}, name)', many=True),
    ),
    'vm_uuid!=""',  # on a node of KubeVirt, all VMs are KubeVirt's
    {
        "Summary": (
            number_panel("VMs", "short", f"count(group by (namespace, name) ({INFO})) or vector(0)"),
            number_panel("Nodes", "short", f"count(group by (node) ({INFO})) or vector(0)"),
            number_panel(
                "Alerts firing",
                "short",
                f"sum(sum by (job, instance, vm_uuid) (qemu_alert_firing) * on (job, instance, vm_uuid) {INFO}) or vector(0)",
                thresholds=((1, "red"),),
            ),
            number_panel(
                "Not running",
                "short",
                f"count((qemu_runstate_running == 0) * on (job, instance, vm_uuid) {INFO}) or vector(0)",
                thresholds=((1, "orange"),),
            ),
        ),
        "VMs": (
            table_panel(
                "VMs",
                {"namespace": "Namespace", "name": "VM", "node": "Node"},
                Column("CPUs used", "short", rate_by_vm("qemu_vcpu_cpu_seconds_total")),
                Column("Steal", "short", rate_by_vm("qemu_vcpu_run_delay_seconds_total")),
                Column("Resident memory", "bytes", by_vm("qemu_process_resident_bytes")),
                Column("Read", "Bps", rate_by_vm("qemu_block_read_bytes_total")),
                Column("Written", "Bps", rate_by_vm("qemu_block_write_bytes_total")),
                empty=NONE,
                help="The VMs of the chosen namespaces. During a migration, a VM has a row for each of its two nodes.",
            ),
        ),
        "Load": (
            graph_panel("CPUs used", "short", (rate_by_vm("qemu_vcpu_cpu_seconds_total"), NAME), empty=NONE),
            graph_panel(
                "Steal",
                "short",
                (rate_by_vm("qemu_vcpu_run_delay_seconds_total"), NAME),
                empty=NONE,
                help="Number of vCPUs that wait for a CPU of the node. KubeVirt's own metrics lack this value before 1.0.",
            ),
        ),
        "Disks and network": (
            graph_panel(
                "Mean latency of writes",
                "s",
                (
                    f"{rate_by_vm('qemu_block_write_seconds_total')} / ({rate_by_vm('qemu_block_writes_total')} > 0)",
                    NAME,
                ),
                empty=NONE,
            ),
            graph_panel(
                "Traffic",
                "Bps",
                (rate_by_vm("qemu_net_receive_bytes_total"), f"{NAME} received by the VM"),
                (rate_by_vm("qemu_net_transmit_bytes_total"), f"{NAME} sent by the VM"),
                empty=NONE,
            ),
        ),
    },
)
