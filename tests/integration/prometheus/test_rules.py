"""Prometheus' alert and recording rules: they fire when they should, name a runbook, and use series that the agent exports."""

import re
import subprocess
from pathlib import Path
from typing import Any, Final

import pytest
import yaml

from agent.guest.shared_types import GuestAgentState
from agent.session.shared_types import MonitorState
from deploy.prometheus import kubevirt_names, libvirt_names
from tests.lab.machine import require
from tests.lab.markdown import anchors

ROOT: Final = Path(__file__).parents[3]
FOLDER: Final = ROOT / "deploy/prometheus"


def rules(file: str) -> list[dict[str, Any]]:
    return [rule for group in yaml.safe_load((FOLDER / file).read_text())["groups"] for rule in group["rules"]]


ALERTS: Final = rules("alerts.yml")
FORWARDED: Final = rules("agent-alerts.yml")
TESTS: Final = sorted(FOLDER.glob("alerts*.test.yml"))


def exported_series() -> set[str]:
    """Return the series in docs/reference/metrics.md, which is generated from the code."""
    return set(re.findall(r"^\| `(q\w+)` \|", (ROOT / "docs/reference/metrics.md").read_text(), re.MULTILINE))


def promtool(*arguments: str | Path) -> str:
    """Run promtool, which must succeed, and return its output."""
    require("promtool", "prometheus")
    result = subprocess.run(["promtool", *arguments], capture_output=True, text=True, timeout=900, check=False)
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout + result.stderr


def test_the_rule_tests_pass() -> None:
    assert promtool("test", "rules", *TESTS).count("SUCCESS") == len(TESTS) == 2


def test_the_rules_use_the_job_of_the_example_scrape_config() -> None:
    promtool("check", "config", FOLDER / "scrape.yml")
    (job,) = yaml.safe_load((FOLDER / "scrape.yml").read_text())["scrape_configs"]
    jobs = {name for rule in ALERTS for name in re.findall(r'\bjob="([^"]+)"', rule["expr"])}
    assert jobs == {job["job_name"]}


def test_each_alert_has_a_test_that_it_fires_and_one_that_it_does_not() -> None:
    tests = [
        test for file in TESTS for case in yaml.safe_load(file.read_text())["tests"] for test in case["alert_rule_test"]
    ]
    for fires in (True, False):
        tested = {test["alertname"] for test in tests if bool(test["exp_alerts"]) is fires}
        assert tested == {rule["alert"] for rule in (*ALERTS, *FORWARDED)}


@pytest.mark.parametrize("rule", [*ALERTS, *FORWARDED], ids=lambda rule: str(rule["alert"]))
def test_an_alert_uses_series_that_the_agent_exports(rule: dict[str, Any]) -> None:
    names = set(re.findall(r"\b(?:qemu|qmp)_\w+", rule["expr"]))
    assert names or "up{" in rule["expr"]
    assert names <= exported_series()
    states = {state.value for state in (*MonitorState, *GuestAgentState)}
    assert set(re.findall(r'\bstate="([^"]+)"', rule["expr"])) <= states


@pytest.mark.parametrize("rule", ALERTS, ids=lambda rule: str(rule["alert"]))
def test_an_alert_has_a_severity_a_summary_and_a_runbook(rule: dict[str, Any]) -> None:
    assert rule["labels"]["severity"] in {"critical", "warning"}
    assert rule["annotations"]["summary"]
    page, _, anchor = rule["annotations"]["runbook"].partition("#")
    assert anchor in anchors(ROOT / page)


def test_the_forwarded_alerts_link_the_instructions_of_the_agents_alert() -> None:
    for rule in FORWARDED:
        assert rule["annotations"]["runbook"] == "docs/reference/alerts.md#{{ $labels.alert }}"
        assert rule["labels"]["severity"] in {"critical", "warning"}


def quiet_series(minutes: int) -> dict[str, str]:
    """Return the series of an ordinary VM and its agent, and their values every two minutes, for a day that begins at night.

    The guest works by day: its vCPUs are busy for half of the time and wait for 3 %. At night a backup clears its bitmap.
    """
    steps = minutes // 2

    def counter(per_second: float, day: float = 1.0) -> str:
        """Return a counter that grows at a rate at night, and `day` times as fast by day."""
        night, total, values = 210, 0.0, []
        for step in range(steps + 1):
            total += per_second * 120 * (day if night < step < steps - 60 else 1.0)
            values.append(f"{total:.0f}")
        return " ".join(values)

    def constant(value: float) -> str:
        return f"{value}x{steps}"

    bitmap = " ".join(str((step % 360) * 2_000_000) for step in range(steps + 1))
    vm: dict[str, str] = {
        **{f'qemu_vcpu_cpu_seconds_total#vcpu="{n}"': counter(0.05, 10) for n in range(2)},
        **{f'qemu_vcpu_run_delay_seconds_total#vcpu="{n}"': counter(0.005, 6) for n in range(2)},
        'qemu_iothread_cpu_seconds_total#iothread="io0"': counter(0.02, 20),
        "qemu_process_main_loop_cpu_seconds_total#": counter(0.01, 5),
        "qemu_cgroup_pressure_memory_stalled_seconds_total#": counter(0.0001, 10),
        "qemu_guest_memory_swap_in_bytes_total#": counter(100, 100),
        'qemu_block_failed_reads_total#device="disk0"': constant(3),
        'qemu_block_bitmap_dirty_bytes#device="disk0",layer="format",bitmap="b"': bitmap,
        'qemu_block_bitmap_recording#device="disk0",layer="format",bitmap="b"': constant(1),
        'qemu_block_space_free_bytes#device="disk0"': f"50000000000-200000x{steps}",
        'qemu_block_space_limit_bytes#device="disk0"': constant(100_000_000_000),
        'qemu_block_space_limited_by#device="disk0",limited_by="device"': constant(1),
        'qemu_migration_status#status="none"': constant(1),
        "qemu_vm_up#": constant(1),
        "qemu_vm_last_response_timestamp_seconds#": f"0+120x{steps}",
    }
    host = {
        'qemu_pool_free_bytes{pool="/srv",kind="filesystem"}': f"500000000000-600000x{steps}",
        'qemu_pool_size_bytes{pool="/srv",kind="filesystem"}': constant(1_000_000_000_000),
        'qmp_agent_monitor_state{monitor="/run/web-3.qmp",state="up"}': constant(1),
        "qmp_agent_heartbeat_delivered_timestamp_seconds{}": f"0+120x{steps}",
        'qmp_agent_queue_oldest_record_age_seconds{queue="events"}': constant(0),
        'qmp_agent_records_dropped_total{queue="samples",reason="queue_full"}': constant(0),
        "qmp_agent_journal_up{}": constant(1),
        "qmp_agent_sink_up{}": constant(1),
        "up{}": constant(1),
    }
    own = 'instance="hv7:9179",job="qmp-agent"'
    series = {
        key.replace("#", f'{{{own},vm_uuid="u1",vm="web-3",', 1).rstrip(",") + "}": values for key, values in vm.items()
    }
    return series | {key.replace("{", f"{{{own},", 1).replace(",}", "}"): values for key, values in host.items()}


def test_no_rule_fires_for_an_ordinary_vm_on_a_quiet_day(folder: Path) -> None:
    series = quiet_series(24 * 60)
    tests = [
        {"eval_time": f"{hours}h", "alertname": rule["alert"], "exp_alerts": []}
        for hours in range(1, 25)
        for rule in (*ALERTS, *FORWARDED)
    ]
    case = {
        "interval": "2m",
        "input_series": [{"series": name, "values": values} for name, values in series.items()],
        "alert_rule_test": tests,
    }
    files = [str(FOLDER / name) for name in ("alerts.yml", "agent-alerts.yml")]
    quiet = folder / "quiet.test.yml"
    quiet.write_text(yaml.safe_dump({"rule_files": files, "evaluation_interval": "2m", "tests": [case]}))
    assert "SUCCESS" in promtool("test", "rules", quiet)


@pytest.mark.parametrize("dialect", libvirt_names.DIALECTS)
def test_the_generated_rules_for_exporters_names_are_up_to_date_and_valid(dialect: str) -> None:
    text = (FOLDER / f"libvirt-names-{dialect}.yml").read_text()
    assert text == libvirt_names.rules_file(dialect), "run `make generate`"
    assert set(re.findall(r"\bqemu_\w+", text)) <= exported_series()
    promtool("check", "rules", FOLDER / f"libvirt-names-{dialect}.yml")


def test_the_rules_for_tinkoffs_names_produce_its_series() -> None:
    promtool("test", "rules", FOLDER / "libvirt-names-tinkoff.test.yml")


KUBEVIRT_NAMES: Final = frozenset(
    re.findall(
        r"\w+",
        """
    cpu_system_usage_seconds_total cpu_usage_seconds_total cpu_user_usage_seconds_total dirty_rate_bytes_per_second
    filesystem_capacity_bytes filesystem_used_bytes gpu_info guest_device_driver_date_seconds guest_load_15m guest_load_1m guest_load_5m
    guest_os_panic_total info last_api_connection_timestamp_seconds launcher_memory_overhead_bytes memory_actual_balloon_bytes
    memory_available_bytes memory_cached_bytes memory_domain_bytes memory_pgmajfault_total memory_pgminfault_total memory_resident_bytes
    memory_swap_in_traffic_bytes memory_swap_out_traffic_bytes memory_unused_bytes memory_usable_bytes migration_data_bytes_total
    migration_data_processed_bytes migration_data_remaining_bytes migration_dirty_memory_rate_bytes migration_end_time_seconds
    migration_failed migration_memory_transfer_rate_bytes migration_start_time_seconds migration_succeeded network_receive_bytes_total
    network_receive_errors_total network_receive_packets_dropped_total network_receive_packets_total network_traffic_bytes_total
    network_transmit_bytes_total network_transmit_errors_total network_transmit_packets_dropped_total network_transmit_packets_total
    node_cpu_affinity non_evictable number_of_outdated status_addresses storage_flush_requests_total storage_flush_times_seconds_total
    storage_iops_read_total storage_iops_write_total storage_read_times_seconds_total storage_read_traffic_bytes_total
    storage_write_times_seconds_total storage_write_traffic_bytes_total sync_total vcpu_delay_seconds_total vcpu_seconds_total
    vcpu_wait_seconds_total vnic_info
    """,
    )
)
"""Names in KubeVirt's docs/observability/metrics.md (main, 2026) that begin with kubevirt_vmi_, apart from those of phases."""


def test_every_name_of_kubevirts_documentation_has_a_rule_or_a_reason_why_not() -> None:
    produced = {name.removeprefix("kubevirt_vmi_") for name, _ in kubevirt_names.generate_rules()} - {kubevirt_names.VM}
    assert produced | kubevirt_names.NOT_AVAILABLE.keys() == KUBEVIRT_NAMES
    assert not produced & kubevirt_names.NOT_AVAILABLE.keys()


def test_the_rules_for_kubevirts_names_are_up_to_date_and_produce_its_series() -> None:
    text = (FOLDER / "kubevirt-names.yml").read_text()
    assert text == kubevirt_names.rules_file(), "run `make generate`"
    assert set(re.findall(r"\bqemu_\w+", text)) <= exported_series()
    promtool("check", "rules", FOLDER / "kubevirt-names.yml")
    promtool("test", "rules", FOLDER / "kubevirt-names.test.yml")
