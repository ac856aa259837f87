"""Alerts on samples: the built-in rules, durations, hysteresis, limits of memory, and restarts."""

from dataclasses import replace
from typing import Any

import pytest

from agent.alerts.alertmanager_request import AlertmanagerRequests
from agent.alerts.catalogue import ALERT_CATALOGUE
from agent.alerts.rules.comparison import Operator
from agent.alerts.rules.overrides import AlertOverride, AlertOverrides
from agent.alerts.rules.rule_types import NO_RUNBOOK, SampleAlertRule
from agent.alerts.rules.sample_rule_evaluator import MAX_RULE_SUBJECTS
from agent.alerts.rules.sample_rules import DAY, HOUR, MINUTE, SAMPLE_ALERT_RULES
from agent.alerts.store import Alert
from agent.app.self_metrics import AlertMetrics
from agent.model.family import Sample
from agent.model.metrics.block import BLOCK
from agent.model.metrics.block_layers import BLOCK_BITMAP, BLOCK_LAYER
from agent.model.metrics.jobs import JOB
from agent.model.metrics.memory import BALLOON, GUEST_MEMORY, MEMORY
from agent.model.metrics.migration import MIGRATION
from agent.model.metrics.vm_process_and_interfaces import CGROUP
from agent.model.record import Severity
from tests.lab.alert_scenario import AlertScenario, Change
from tests.lab.thin_disks import GIB, VM, Disk


def job(name: str = "backup0", kind: str = "backup", **values: Any) -> Sample:
    return Sample(JOB, (name, kind), values)


def running(rate: float | None) -> Sample:
    rates = {} if rate is None else {"progress_per_second": rate}
    return Sample(JOB, ("backup0", "backup"), {"status": "running", **rates})


def test_a_job_without_progress_for_ten_minutes_is_stuck_until_it_goes_on(scenario: AlertScenario) -> None:
    assert scenario.samples(0, JOB, running(None)) == []
    assert scenario.samples(10, JOB, running(0.0)) == []
    assert scenario.samples(9 * MINUTE, JOB, running(5.0)) == []
    assert scenario.samples(10 * MINUTE, JOB, running(0.0)) == []
    assert scenario.samples(20 * MINUTE - 1, JOB, running(0.0)) == []
    assert scenario.samples(20 * MINUTE, JOB, running(0.0)) == [("job_stuck", "backup0", "firing")]
    assert scenario.samples(21 * MINUTE, JOB, running(0.0)) == []
    assert scenario.samples(22 * MINUTE, JOB, running(None)) == []
    assert scenario.samples(23 * MINUTE, JOB, running(1.0)) == [("job_stuck", "backup0", "resolved")]


@pytest.mark.parametrize(
    ("status", "alert", "seconds"),
    [
        ("paused", "job_paused", HOUR),
        ("ready", "job_unfinished", 12 * HOUR),
        ("pending", "job_pending", HOUR),
        ("concluded", "job_not_dismissed", HOUR),
    ],
)
def test_a_job_that_waits_for_a_client_fires_until_it_is_gone(
    scenario: AlertScenario, status: str, alert: str, seconds: float
) -> None:
    assert scenario.samples(0, JOB, job(status=status)) == []
    assert scenario.samples(seconds - 1, JOB, job(status=status)) == []
    assert scenario.samples(seconds, JOB, job(status=status), job("other", status="running")) == [
        (alert, "backup0", "firing")
    ]
    assert scenario.samples(seconds + 1, JOB, job("other", status="running")) == [(alert, "backup0", "resolved")]
    assert scenario.emitted[-1].data["resolved_by"] == "subject_gone"


def test_a_job_at_an_io_error_fires_at_once(scenario: AlertScenario) -> None:
    assert scenario.samples(0, JOB, job(status="running", io_status="ok")) == []
    assert scenario.samples(1, JOB, job(status="paused", io_status="nospace")) == [
        ("job_io_error", "backup0", "firing")
    ]
    assert {"type": "backup", "io_status": "nospace"}.items() <= scenario.emitted[-1].data.items()
    assert scenario.samples(2, JOB, job(status="running", io_status="ok")) == [("job_io_error", "backup0", "resolved")]


def test_a_failed_migration_fires_until_the_next_one(scenario: AlertScenario) -> None:
    failed = Sample(MIGRATION, (), {"status": "failed", "error": "Unable to write to socket"})
    assert scenario.samples(1, MIGRATION, failed) == [("migration_failed", "", "firing")]
    assert scenario.emitted[-1].data["error"] == "Unable to write to socket"
    assert scenario.samples(2, MIGRATION, Sample(MIGRATION, (), {"status": "setup"})) == [
        ("migration_failed", "", "resolved")
    ]


def test_a_failed_recovery_of_postcopy_is_no_migration_that_merely_failed(scenario: AlertScenario) -> None:
    scenario.migration("postcopy-paused", 1)
    scenario.migration("failed", 2)
    assert ("postcopy_recovery_failed", "") in scenario.firing()
    assert scenario.samples(3, MIGRATION, Sample(MIGRATION, (), {"status": "failed"})) == []


def test_a_muted_alert_on_a_failed_recovery_does_not_suppress_the_failed_migration(scenario: AlertScenario) -> None:
    override(scenario, AlertOverride("postcopy_recovery_failed", enabled=False))
    scenario.migration("postcopy-paused", 1)
    scenario.migration("failed", 2)
    assert scenario.samples(3, MIGRATION, Sample(MIGRATION, (), {"status": "failed"})) == [
        ("migration_failed", "", "firing")
    ]


def test_each_inconsistent_bitmap_of_a_disk_has_an_alert(scenario: AlertScenario) -> None:
    bitmaps = [Sample(BLOCK_BITMAP, ("disk0", "format", name), {"inconsistent": True}) for name in ("b1", "b2")]
    assert scenario.samples(1, BLOCK_BITMAP, *bitmaps) == [("bitmap_inconsistent", "disk0", "firing")] * 2
    assert {record.data["level"] for record in scenario.emitted} == {"b1", "b2"}
    assert scenario.samples(2, BLOCK_BITMAP, bitmaps[1]) == [("bitmap_inconsistent", "disk0", "resolved")]
    assert scenario.emitted[-1].data["level"] == "b1"


def chain(*paths: str, device: str = "disk0", snapshots: list[dict[str, Any]] | None = None) -> list[Sample]:
    names = ["format", *(f"backing-{depth}" for depth in range(1, len(paths)))]
    values = [{"path": path} for path in paths]
    if snapshots is not None:
        values[0]["snapshots"] = snapshots  # type: ignore[assignment]
    return [Sample(BLOCK_LAYER, (device, name), value) for name, value in zip(names, values, strict=True)]


def test_a_chain_of_more_than_sixteen_backing_images_is_deep(scenario: AlertScenario) -> None:
    paths = [f"/images/{number}" for number in range(18)]
    assert scenario.samples(1, BLOCK_LAYER, *chain(*paths[:17])) == []
    assert scenario.samples(2, BLOCK_LAYER, *chain(*paths)) == [("chain_deep", "disk0", "firing")]
    assert scenario.emitted[-1].data["depth"] == 17
    assert scenario.samples(3, BLOCK_LAYER, *chain(*paths[:17])) == [("chain_deep", "disk0", "resolved")]


def test_an_internal_snapshot_is_old_by_its_date(scenario: AlertScenario) -> None:
    young, old = {"created_timestamp_seconds": int(20 * DAY)}, {"created_timestamp_seconds": int(DAY)}
    assert scenario.samples(30 * DAY, BLOCK_LAYER, *chain("/a", snapshots=[old, young])) == []
    assert scenario.samples(31 * DAY + 1, BLOCK_LAYER, *chain("/a", snapshots=[old, young])) == [
        ("snapshot_old", "disk0", "firing")
    ]
    assert scenario.emitted[-1].data["snapshot_kind"] == "internal"
    assert scenario.samples(32 * DAY, BLOCK_LAYER, *chain("/a", snapshots=[young])) == [
        ("snapshot_old", "disk0", "resolved")
    ]


def test_the_age_of_an_external_snapshot_survives_a_restart_of_the_agent(scenario: AlertScenario) -> None:
    scenario.samples(1, BLOCK_LAYER, *chain("/base"))
    scenario.samples(10, BLOCK_LAYER, *chain("/snap", "/base"))
    scenario.tick(11)
    scenario.restart()
    scenario.attach()
    assert scenario.samples(20 * DAY, BLOCK_LAYER, *chain("/snap2", "/snap", "/base")) == []
    assert scenario.samples(30 * DAY + 11, BLOCK_LAYER, *chain("/snap2", "/snap", "/base")) == [
        ("snapshot_old", "disk0", "firing")
    ]
    assert scenario.emitted[-1].data["snapshot_kind"] == "external"
    assert scenario.samples(31 * DAY, BLOCK_LAYER, *chain("/snap2", "/base")) == [("snapshot_old", "disk0", "resolved")]


def test_an_old_snapshot_is_resolved_when_it_was_the_only_one(scenario: AlertScenario) -> None:
    old = {"created_timestamp_seconds": int(DAY)}
    scenario.samples(1, BLOCK_LAYER, *chain("/base", device="disk1"))
    scenario.samples(2, BLOCK_LAYER, *chain("/snap", "/base", device="disk1"))
    layers = [*chain("/a", snapshots=[old]), *chain("/snap", "/base", device="disk1")]
    scenario.samples(40 * DAY, BLOCK_LAYER, *layers)
    assert scenario.firing() == {("snapshot_old", "disk0"), ("snapshot_old", "disk1")}
    scenario.samples(41 * DAY, BLOCK_LAYER, *chain("/a", snapshots=[]), *chain("/base", device="disk1"))
    assert scenario.firing() == set()


def test_a_snapshot_that_was_taken_while_the_agent_was_away_is_seen(scenario: AlertScenario) -> None:
    scenario.samples(1, BLOCK_LAYER, *chain("/base"))
    scenario.tick(2)
    scenario.restart()
    scenario.attach()
    scenario.samples(DAY, BLOCK_LAYER, *chain("/snap", "/base"))
    assert scenario.samples(31 * DAY + 1, BLOCK_LAYER, *chain("/snap", "/base")) == [
        ("snapshot_old", "disk0", "firing")
    ]


@pytest.mark.parametrize(
    "then", [("/clone", "/base"), ("/copy", "/base"), ("/clone",)], ids=["kept", "moved", "pulled"]
)
def test_a_linked_clone_is_no_snapshot(scenario: AlertScenario, then: tuple[str, ...]) -> None:
    scenario.samples(1, BLOCK_LAYER, *chain("/clone", "/base"))
    scenario.samples(2, BLOCK_LAYER, *chain(*then))
    assert scenario.samples(400 * DAY, BLOCK_LAYER, *chain(*then)) == []


def test_a_snapshot_that_was_merged_down_is_no_snapshot_any_longer(scenario: AlertScenario) -> None:
    scenario.samples(1, BLOCK_LAYER, *chain("/base"))
    scenario.samples(2, BLOCK_LAYER, *chain("/snap", "/base"))
    scenario.samples(3, BLOCK_LAYER, *chain("/base"))
    assert scenario.samples(400 * DAY, BLOCK_LAYER, *chain("/base")) == []


@pytest.mark.parametrize(("family", "alert"), [(GUEST_MEMORY, "guest_oom"), (CGROUP, "cgroup_oom")])
def test_an_oom_kill_fires_for_an_hour(scenario: AlertScenario, family: Any, alert: str) -> None:
    def kills(number: int) -> Sample:
        return Sample(family, (), {"oom_kills_total": number})

    assert scenario.samples(0, family, kills(7)) == [], "it was before the agent"
    assert scenario.samples(10, family, kills(7)) == []
    assert scenario.samples(20, family, kills(8)) == [(alert, "", "firing")]
    assert scenario.samples(30, family, kills(8)) == []
    assert scenario.tick(20 + HOUR - 1) == []
    assert scenario.tick(20 + HOUR) == [(alert, "", "resolved")]
    assert scenario.samples(HOUR + 30, family, kills(2)) == [], "the counter began again"
    assert scenario.samples(HOUR + 40, family, kills(3)) == [(alert, "", "firing")]


def test_a_reload_of_the_config_forgets_no_counter(scenario: AlertScenario) -> None:
    def kills(at: float, number: int) -> list[Change]:
        return scenario.samples(at, CGROUP, Sample(CGROUP, (), {"oom_kills_total": number}))

    kills(0, 7)
    row = SampleAlertRule(
        alert="mine", family=CGROUP, field="oom_kills_total", operator=Operator.INCREASES, severity=Severity.INFO,
        help="Mine.", custom=True, resolve_after_seconds=60.0,
    )  # fmt: skip
    override(scenario, custom=(row,))
    assert kills(10, 7) == []
    assert kills(20, 8) == [("cgroup_oom", "", "firing"), ("mine", "", "firing")]


def test_a_balloon_that_holds_memory_of_a_guest_with_too_little_is_pressure(scenario: AlertScenario) -> None:
    def memory(at: float, available: float) -> list[Change]:
        values = {"available_bytes": int(available * GIB), "total_bytes": 2 * GIB}
        return scenario.samples(at, GUEST_MEMORY, Sample(GUEST_MEMORY, (), values))

    assert memory(0, 0.01) == [], "the balloon is not known"
    scenario.samples(0, MEMORY, Sample(MEMORY, (), {"base_bytes": 4 * GIB}))
    scenario.samples(0, BALLOON, Sample(BALLOON, (), {"actual_bytes": 4 * GIB}))
    assert memory(1, 0.01) == memory(1000, 0.01) == [], "the balloon is empty"
    scenario.samples(1001, BALLOON, Sample(BALLOON, (), {"actual_bytes": 2 * GIB}))
    assert memory(1010, 0.05) == []
    assert memory(1310, 0.05) == [("balloon_pressure", "", "firing")]
    assert memory(1320, 0.12) == [], "6 % is within the hysteresis"
    assert memory(1330, 0.15) == [("balloon_pressure", "", "resolved")]


def test_a_corrupt_flag_fires_without_an_event(scenario: AlertScenario) -> None:
    layers = [Sample(BLOCK_LAYER, ("disk0", layer), {"corrupt": layer == "format"}) for layer in ("format", "storage")]
    assert scenario.samples(1, BLOCK_LAYER, *layers) == [("image_corrupted", "disk0", "firing")]
    assert scenario.samples(2, BLOCK_LAYER, *layers) == []


def test_a_firing_alert_is_resolved_after_a_restart_if_its_condition_has_ended(scenario: AlertScenario) -> None:
    scenario.samples(0, JOB, job(status="paused", io_status="failed"))
    scenario.restart()
    scenario.attach()
    assert scenario.samples(1, JOB, job(status="paused", io_status="failed")) == []
    assert scenario.samples(2, JOB) == [("job_io_error", "backup0", "resolved")]


def test_a_hostile_vm_cannot_fill_the_memory_of_conditions(scenario: AlertScenario) -> None:
    jobs = [job(f"job{number}", status="paused") for number in range(2 * MAX_RULE_SUBJECTS)]
    scenario.samples(0, JOB, *jobs)
    (state,) = scenario.engine._processes.processes_with_uuid(VM.uuid)
    assert len(state.rule_state.pending) == MAX_RULE_SUBJECTS
    assert scenario.engine.store.suppressed == MAX_RULE_SUBJECTS
    scenario.samples(1, JOB)
    assert not state.rule_state.pending


def override(scenario: AlertScenario, *overrides: AlertOverride, custom: tuple[SampleAlertRule, ...] = ()) -> None:
    scenario.engine.set_overrides(AlertOverrides(overrides), custom)


def test_the_config_changes_a_limit_a_duration_and_a_severity_of_some_vms(scenario: AlertScenario) -> None:
    override(
        scenario,
        AlertOverride("chain_deep", device="disk1"),
        AlertOverride("chain_*", vm="vm*", limit=1.0, severity=Severity.CRITICAL, seconds=60.0),
    )
    layers = [*chain("/a", "/b", "/c"), *chain("/d", "/e", "/f", device="disk1")]
    assert scenario.samples(0, BLOCK_LAYER, *layers) == []
    assert scenario.samples(60, BLOCK_LAYER, *layers) == [("chain_deep", "disk0", "firing")]
    assert scenario.emitted[-1].severity is Severity.CRITICAL


def test_a_silenced_alert_is_resolved_until_it_is_not_silenced(scenario: AlertScenario) -> None:
    scenario.samples(0, JOB, job(io_status="failed"))
    scenario.event("GUEST_PANICKED", 1, action="run")
    silence = AlertOverride("job_*", device="backup*", enabled=False)
    override(scenario, silence, AlertOverride("guest_panicked", vm="other*", enabled=False))
    assert scenario.tick(2) == [("job_io_error", "backup0", "resolved")]
    assert scenario.emitted[-1].data["resolved_by"] == "silenced"
    assert scenario.samples(3, JOB, job(io_status="failed")) == scenario.tick(3) == []
    assert scenario.firing() == {("guest_panicked", "")}
    assert len(scenario.engine.store) == 1
    override(scenario)
    assert scenario.tick(4) == [("job_io_error", "backup0", "firing")]
    assert scenario.emitted[-1].data["since_timestamp_seconds"] == 0.0


def test_a_silenced_alert_whose_condition_ended_does_not_fire_later(scenario: AlertScenario) -> None:
    override(scenario, AlertOverride("*", enabled=False))
    assert scenario.samples(0, JOB, job(io_status="failed")) == []
    assert scenario.samples(1, JOB, job(io_status="ok")) == []
    override(scenario)
    assert scenario.tick(2) == []


def test_a_disk_above_its_level_alerts_when_it_is_no_longer_silenced(scenario: AlertScenario) -> None:
    override(scenario, AlertOverride("write_threshold", device="disk*", enabled=False))
    assert scenario.disks(1, disk0=Disk(offset=85 * GIB)) == []
    scenario.restart()
    scenario.attach()
    override(scenario, AlertOverride("write_threshold", device="disk*", enabled=False))
    assert scenario.tick(2) == scenario.disks(3, disk0=Disk(offset=85 * GIB)) == []
    override(scenario)
    assert scenario.tick(4) == [("write_threshold", "disk0", "firing")]
    assert scenario.disks(5, disk0=Disk(size=200 * GIB, offset=85 * GIB)) == [("write_threshold", "disk0", "resolved")]


def test_an_alert_that_the_new_config_silences_is_resolved_after_a_restart(scenario: AlertScenario) -> None:
    scenario.run_state("internal-error", 2)
    scenario.restart()
    override(scenario, AlertOverride("internal_*", enabled=False))
    scenario.attach()
    assert scenario.tick(3) == [("internal_error", "", "resolved")]


@pytest.mark.parametrize("name", ALERT_CATALOGUE)
def test_each_alert_can_be_turned_off(scenario: AlertScenario, name: str) -> None:
    override(scenario, AlertOverride(name, vm="vm?", enabled=False))
    alert = Alert(name, VM, "disk0", "", Severity.ERROR, 1, {}, owner=1)
    assert list(scenario.engine.store.fire(alert)) == []
    assert [record.subject for record in scenario.engine.store.fire(replace(alert, vm=replace(VM, name="db"), owner=2))]


def test_a_silenced_alert_of_a_run_state_does_not_fire(scenario: AlertScenario) -> None:
    override(scenario, AlertOverride("shutdown_stuck", seconds=10.0), AlertOverride("guest_suspended", enabled=False))
    scenario.run_state("shutdown", 10)
    assert scenario.tick(19) == []
    assert scenario.tick(20) == [("shutdown_stuck", "", "firing")]


def test_an_own_alert_is_a_record_of_type_custom_and_ends_with_its_rule(scenario: AlertScenario) -> None:
    row = SampleAlertRule(
        alert="many_reads", family=BLOCK, field="reads_total", operator=Operator.ABOVE, value=10.0, severity=Severity.INFO,
        help="Many reads.", custom=True, device="disk*",
    )  # fmt: skip
    override(scenario, custom=(row,))
    reads = [Sample(BLOCK, (device,), {"reads_total": 11}) for device in ("cd0", "disk0")]
    assert scenario.samples(1, BLOCK, *reads) == [("many_reads", "disk0", "firing")]
    assert scenario.emitted[-1].type == "qemu.alert.custom"
    (body,) = AlertmanagerRequests("hv7", 0.0).compose(scenario.engine.store, 2.0)
    assert (body["labels"]["alertname"], body["labels"]["device"]) == ("many_reads", "disk0")
    (firing, _) = AlertMetrics(scenario.engine.store).collect()
    assert [sample.labels["alert"] for sample in firing.samples] == ["many_reads"]
    scenario.restart()
    scenario.attach()
    assert scenario.firing() == {("many_reads", "disk0")}
    assert scenario.tick(2) == [("many_reads", "disk0", "resolved")]
    assert scenario.emitted[-1].type == "qemu.alert.custom"
    assert scenario.emitted[-1].data["resolved_by"] == "rule_gone"


def test_no_family_is_watched_that_no_row_concerns(scenario: AlertScenario) -> None:
    watched = scenario.engine.rules.samples.families
    assert BLOCK not in watched
    assert {JOB, MIGRATION, BLOCK_LAYER, BALLOON} <= watched


def test_each_alert_has_one_row_with_instructions() -> None:
    names = [row.alert for row in SAMPLE_ALERT_RULES]
    assert len(names) == len(set(names))
    for row in SAMPLE_ALERT_RULES:
        assert row.field in {field.name for field in row.family.fields}, row.alert
        assert set(row.copied_fields) <= {field.name for field in row.family.fields}, row.alert
    for info in ALERT_CATALOGUE.values():
        assert info.runbook != NO_RUNBOOK, info.name
        assert info.help.endswith("."), info.name
        assert info.runbook.cause.endswith("."), info.name
        assert info.runbook.action.endswith("."), info.name
