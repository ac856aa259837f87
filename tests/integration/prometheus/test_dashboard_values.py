"""Values of dashboard panels on hosts with and without VMs, evaluated by promtool."""

import json
from pathlib import Path
from typing import Final

import pytest

from dashboards.fleet import FLEET
from dashboards.host import HOST
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


def check(folder: Path, expected: dict[str, dict[str, float]], hosts: dict[str, tuple[str, ...]]) -> None:
    """Evaluate queries and compare their values.

    Args:
        folder: where promtool's files go.
        expected: the values of each query, by labels in the text format.
        hosts: names of the series of each host.
    """
    series = [
        {"series": f'{name}{{instance="{host}",{BUSY[name][1]}}}'.replace(",}", "}"), "values": BUSY[name][0]}
        for host, names in hosts.items()
        for name in names
    ]
    tests = [
        {
            "expr": substitute(query),
            "eval_time": "9m",
            "exp_samples": [{"labels": labels, "value": value} for labels, value in values.items()],
        }
        for query, values in expected.items()
    ]
    path = folder / "test.json"
    path.write_text(json.dumps({"tests": [{"interval": "1m", "input_series": series, "promql_expr_test": tests}]}))
    promtool("test", "rules", path)


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
