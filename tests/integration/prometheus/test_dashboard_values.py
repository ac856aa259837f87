"""Values of dashboard panels on hosts with and without VMs, evaluated by promtool."""

import json
from pathlib import Path
from typing import Final

import pytest

from dashboards.fleet import FLEET
from dashboards.host import HOST
from dashboards.kubevirt import KUBEVIRT
from dashboards.vm import VM
from tests.integration.prometheus.test_rules import promtool
from tests.integration.prometheus.test_two_hosts import substitute

BUSY: Final = {
    "qmp_agent_build_info": ("1x10", ""),
    "qemu_vm_up": ("1x10", 'vm="web-1",vm_uuid="u1"'),
    "qemu_vcpu_cpu_seconds_total": ("0+30x10", 'vm="web-1",vm_uuid="u1",vcpu="0"'),
    "qemu_vcpu_run_delay_seconds_total": ("0+6x10", 'vm="web-1",vm_uuid="u1",vcpu="0"'),
    "qemu_process_user_seconds_total": ("0+30x10", 'vm="web-1",vm_uuid="u1"'),
    "qemu_process_system_seconds_total": ("0+30x10", 'vm="web-1",vm_uuid="u1"'),
    "qemu_process_resident_bytes": ("1000x10", 'vm="web-1",vm_uuid="u1"'),
    "qemu_block_read_bytes_total": ("0+60x10", 'vm="web-1",vm_uuid="u1",device="disk0"'),
    "qemu_block_write_bytes_total": ("0+120x10", 'vm="web-1",vm_uuid="u1",device="disk0"'),
}
REMOTE: Final = ("qmp_agent_build_info", "qemu_vm_up")
"""Series of a host whose VM is watched over TCP, so that nothing is known of its process."""
IDLE: Final = ("qmp_agent_build_info",)


def check(
    folder: Path,
    expected: dict[str, dict[str, float]],
    hosts: dict[str, tuple[str, ...]],
    values: dict[str, tuple[str, str]] = BUSY,
) -> None:
    """Evaluate queries and compare their values.

    Args:
        folder: where promtool's files go.
        expected: the values of each query, by labels in the text format.
        hosts: names of the series of each host.
        values: values and labels of each series.
    """
    series = [
        {"series": f'{name}{{instance="{host}",{values[name][1]}}}'.replace(",}", "}"), "values": values[name][0]}
        for host, names in hosts.items()
        for name in names
    ]
    check_series(folder, expected, series)


def check_series(folder: Path, expected: dict[str, dict[str, float]], series: list[dict[str, str]]) -> None:
    """Evaluate queries on series in promtool's notation, and compare their values."""
    tests = [
        {
            "expr": substitute(query),
            "eval_time": "9m",
            "exp_samples": [{"labels": labels, "value": value} for labels, value in samples.items()],
        }
        for query, samples in expected.items()
    ]
    path = folder / "test.json"
    path.write_text(json.dumps({"tests": [{"interval": "1m", "input_series": series, "promql_expr_test": tests}]}))
    promtool("test", "rules", path)


KUBEVIRT_VM: Final = {
    "qmp_agent_build_info": ("1x10", ""),
    "qemu_vm_info": ("1x10", 'vm="shop_web-1",vm_uuid="u1",namespace="shop",name="web-1",node="n1"'),
    "qemu_runstate_running": ("0x10", 'vm="shop_web-1",vm_uuid="u1"'),
    "qemu_alert_firing": ("1x10", 'vm="shop_web-1",vm_uuid="u1",alert="a"'),
    "qemu_vcpu_cpu_seconds_total": ("0+30x10", 'vm="shop_web-1",vm_uuid="u1",vcpu="0"'),
    "qemu_vcpu_run_delay_seconds_total": ("0+6x10", 'vm="shop_web-1",vm_uuid="u1",vcpu="0"'),
    "qemu_process_resident_bytes": ("1000x10", 'vm="shop_web-1",vm_uuid="u1"'),
    "qemu_block_read_bytes_total": ("0+60x10", 'vm="shop_web-1",vm_uuid="u1",device="disk0"'),
    "qemu_block_write_bytes_total": ("0+120x10", 'vm="shop_web-1",vm_uuid="u1",device="disk0"'),
    "qemu_block_write_seconds_total": ("0+3x10", 'vm="shop_web-1",vm_uuid="u1",device="disk0"'),
    "qemu_block_writes_total": ("0+60x10", 'vm="shop_web-1",vm_uuid="u1",device="disk0"'),
    "qemu_net_receive_bytes_total": ("0+600x10", 'vm="shop_web-1",vm_uuid="u1",interface="tap0"'),
    "qemu_net_transmit_bytes_total": ("0+1200x10", 'vm="shop_web-1",vm_uuid="u1",interface="tap0"'),
}
"""Series of a node of KubeVirt with one VM, which is paused and has an alert."""


def test_a_vm_of_kubevirt_has_its_names_and_a_host_without_has_none(tmp_path: Path) -> None:
    panels = [panel for row in KUBEVIRT.rows.values() for panel in row]
    numbers = {panel.queries[0]: {"{}": 1.0} for panel in KUBEVIRT.rows["Summary"]}
    assert len(numbers) == 4
    own = '{namespace="shop",name="web-1",node="n1"}'
    values = (0.5, 0.1, 1000, 1, 2, 0.5, 0.1, 0.05, 10, 20)
    queries = [query for panel in panels for query in panel.queries if query not in numbers]
    series = {query: {own: float(value)} for query, value in zip(queries, values, strict=True)}
    check(tmp_path, numbers | series, {"n1:9179": tuple(KUBEVIRT_VM)}, KUBEVIRT_VM)
    nothing = {query: ({"{}": 0.0} if query in numbers else {}) for query in (*numbers, *queries)}
    check(tmp_path, nothing, {"hv1:9179": IDLE})


def test_the_table_of_hosts_has_a_host_without_vms(tmp_path: Path) -> None:
    queries = FLEET.rows["Hosts"][0].queries
    busy, idle = '{instance="hv1:9179"}', '{instance="hv2:9179"}'
    totals = (1, 0, 0, 0.5, 0.1, 1000, 1, 2)
    expected = {query: {busy: value, idle: 0.0} for query, value in zip(queries[:-1], totals, strict=True)}
    check(tmp_path, expected | {queries[-1]: {}}, {"hv1:9179": tuple(BUSY), "hv2:9179": IDLE})


def test_the_table_of_hosts_has_no_zero_for_an_unknown_value(tmp_path: Path) -> None:
    queries = FLEET.rows["Hosts"][0].queries
    only = '{instance="hv1:9179"}'
    expected = {query: {only: value} for query, value in zip(queries[:3], (1.0, 0.0, 0.0), strict=True)}
    check(tmp_path, expected | {query: {} for query in queries[3:]}, {"hv1:9179": REMOTE})


@pytest.mark.parametrize(
    ("names", "cpus", "memory"),
    [(tuple(BUSY), {"{}": 1.0}, {"{}": 1000.0}), (IDLE, {"{}": 0.0}, {"{}": 0.0}), (REMOTE, {}, {})],
    ids=["busy", "without VMs", "process unknown"],
)
def test_a_host_without_vms_uses_no_cpu_and_no_memory(
    tmp_path: Path, names: tuple[str, ...], cpus: dict[str, float], memory: dict[str, float]
) -> None:
    queries = {panel.title: panel.queries[0] for panel in HOST.rows["Summary"]}
    expected = {queries["CPUs used"]: cpus, queries["Memory used"]: memory}
    check(tmp_path, expected, {"hv1:9179": names})


def test_a_heat_map_has_one_disk_because_boundaries_of_disks_differ(tmp_path: Path) -> None:
    buckets = (("device0", "0.001", 60), ("device0", "+Inf", 120), ("device1", "0.05", 600), ("device1", "+Inf", 600))
    name, vm = "qemu_block_read_latency_seconds_bucket", 'vm="web-1",vm_uuid="u1"'
    series = [
        {"series": f'{name}{{{vm},device="{device}",le="{bound}"}}', "values": f"0+{rise}x10"}
        for device, bound, rise in buckets
    ]
    query = next(query for title, query in VM.queries() if title.startswith("Read latency of"))
    check_series(tmp_path, {query: {'{le="0.001"}': 1.0, '{le="+Inf"}': 2.0}}, series)
