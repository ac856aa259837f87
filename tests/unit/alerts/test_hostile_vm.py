"""A QEMU that was taken over: it may send any names at any rate, and takes bounded memory and time of the agent."""

import json

from agent.alerts.disk_alerts import MAX_ALIASES, MAX_DISKS
from agent.alerts.disk_usage import MAX_PAST_NODES
from agent.alerts.event_alerts import MAX_FAILED_JOBS
from agent.alerts.store import MAX_SUBJECT_ALERTS
from agent.model.family import Sample
from agent.model.metrics.block import BLOCK
from tests.lab.alert_scenario import SECOND, AlertScenario
from tests.lab.thin_disks import GIB, VM, Disk


def running_scenario() -> AlertScenario:
    scenario = AlertScenario()
    scenario.attach(pid=1)
    scenario.run_state("running", 1)
    return scenario


def test_errors_of_any_number_of_devices_fire_a_bounded_number_of_alerts() -> None:
    scenario = running_scenario()
    for number in range(MAX_SUBJECT_ALERTS + 500):
        scenario.io_error(10 + number / 1e6, qom_path=f"/machine/peripheral/{number}", device="")
    assert len(scenario.firing()) == MAX_SUBJECT_ALERTS
    assert scenario.engine.store.suppressed == 500
    assert len(scenario.emitted) == MAX_SUBJECT_ALERTS
    assert len(json.dumps(scenario.entries)) < 1000 * MAX_SUBJECT_ALERTS
    panicked = scenario.event("GUEST_PANICKED", 20, action="pause")
    assert panicked == [("guest_panicked", "", "firing")], "an alert of the VM as a whole always has room"
    assert len(scenario.event("RESUME", 30)) == MAX_SUBJECT_ALERTS + 1
    assert scenario.io_error(40, qom_path="/machine/peripheral/disk0", device="") == [("disk_full", "disk0", "firing")]


def test_any_number_of_failed_jobs_is_remembered_up_to_a_limit() -> None:
    scenario = running_scenario()
    for number in range(MAX_FAILED_JOBS + 100):
        scenario.event("BLOCK_JOB_COMPLETED", 10, device=f"job{number}", type="commit", error="x")
    (state,) = scenario.engine._processes
    assert len(state.failed_jobs) == MAX_FAILED_JOBS


def test_node_names_that_change_at_each_poll_take_bounded_memory() -> None:
    scenario = running_scenario()
    for poll in range(6):
        samples = [
            Sample(BLOCK, (f"disk{n}",), {"node": f"node-{poll}-{n}", "backend": f"backend-{poll}-{n}"})
            for n in range(MAX_DISKS)
        ]
        scenario.engine.on_disk_samples(VM, samples, poll, poll * SECOND, families=(BLOCK,))
    (state,) = scenario.engine._processes
    assert len(state.aliases) <= MAX_ALIASES


def test_storage_that_changes_at_each_poll_takes_bounded_memory() -> None:
    scenario = running_scenario()
    for poll in range(MAX_PAST_NODES + 50):
        scenario.disks(poll, disk0=Disk(offset=GIB, node=f"node{poll}"))
    (state,) = scenario.engine._processes
    past = state.trackers["disk0"].usage.past_nodes
    assert len(past) == MAX_PAST_NODES
    assert f"node{MAX_PAST_NODES + 48}" in past, "the newest are kept"
