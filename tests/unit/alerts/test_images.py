"""State of disk images: it is kept over power cycles, unplugging and restarts of the agent, until another image replaces the image."""

import pytest

from agent.alerts.disk_threshold_types import ThresholdMode
from agent.alerts.highest_write_offsets import MAX_IMAGES, HighestWriteStore, ImageKey
from tests.lab.alert_scenario import AlertScenario
from tests.lab.thin_disks import GIB, VM, Disk

LEVEL = ("write_threshold", "disk0")
CORRUPT = ("image_corrupted", "disk0")


def scenario_with_disk(disk: Disk, mode: ThresholdMode = ThresholdMode.OBSERVE) -> AlertScenario:
    """Return a scenario with a polled disk."""
    scenario = AlertScenario(mode)
    scenario.attach(pid=1)
    scenario.disks(1, disk0=disk)
    scenario.tick(2)
    return scenario


# --- Usage ---


def test_a_usage_that_was_not_measured_is_absent_and_resolves_nothing() -> None:
    scenario = scenario_with_disk(Disk(offset=0))
    assert scenario.space().keys().isdisjoint({"used_bytes", "free_bytes", "time_to_full_seconds"})
    assert scenario.space()["limit_bytes"] == 100 * GIB


@pytest.mark.parametrize("agent_restarts", [False, True])
def test_a_full_disk_is_full_after_a_power_cycle(agent_restarts: bool) -> None:  # noqa: FBT001 - a table
    scenario = scenario_with_disk(Disk(offset=96 * GIB))
    assert LEVEL in scenario.firing()
    scenario.detach(at=10, permanently=True)
    scenario.tick(11)
    assert scenario.firing() == set()
    if agent_restarts:
        scenario.restart(now=20)
    scenario.attach(at=100, pid=2)
    assert scenario.disks(101, disk0=Disk(offset=0)) == [(*LEVEL, "firing")] * 3
    assert scenario.space()["used_bytes"] == 96 * GIB


def test_a_quick_power_cycle_keeps_the_alerts() -> None:
    scenario = scenario_with_disk(Disk(offset=96 * GIB))
    scenario.detach(at=10, permanently=True)
    scenario.attach(at=10.5, pid=2)
    assert scenario.disks(11, disk0=Disk(offset=0)) == []
    assert scenario.disks(12, disk0=Disk(offset=4096)) == [], "a write to a low offset frees nothing"
    assert LEVEL in scenario.firing()


def test_a_replugged_disk_has_its_usage() -> None:
    scenario = scenario_with_disk(Disk(offset=96 * GIB))
    assert scenario.disks(10, disk1=Disk(offset=0, path="/dev/vg/b")) == [(*LEVEL, "resolved")] * 3
    assert scenario.disks(11, disk0=Disk(offset=0)) == [(*LEVEL, "firing")] * 3


def test_another_image_at_the_same_path_starts_without_usage() -> None:
    scenario = scenario_with_disk(Disk(offset=96 * GIB))
    scenario.disks(10, disk1=Disk(offset=0, path="/dev/vg/b"))
    assert scenario.disks(11, disk0=Disk(offset=0, size=200 * GIB)) == []


@pytest.mark.parametrize("agent_restarts", [False, True])
@pytest.mark.parametrize("quick", [False, True])
def test_a_recreated_volume_of_the_same_path_and_size_starts_without_usage(
    agent_restarts: bool,  # noqa: FBT001 - a table
    quick: bool,  # noqa: FBT001 - a table
) -> None:
    scenario = AlertScenario()
    scenario.identity = "LVM-1"
    scenario.attach(pid=1)
    scenario.disks(1, disk0=Disk(offset=96 * GIB))
    scenario.tick(2)
    scenario.detach(at=10, permanently=not quick)
    if not quick:
        scenario.tick(11)
    if agent_restarts:
        scenario.restart(now=20)
    scenario.identity = "LVM-2"
    scenario.attach(at=20, pid=2)
    scenario.disks(21, disk0=Disk(offset=0))
    assert scenario.firing() == set()
    assert "used_bytes" not in scenario.space()


@pytest.mark.parametrize("identity", ["", "LVM-1"])
def test_a_volume_whose_identity_is_unknown_for_a_time_keeps_its_usage(identity: str) -> None:
    scenario = scenario_with_disk(Disk(offset=96 * GIB))
    for at, now in ((10, identity), (20, ""), (30, identity)):
        scenario.identity = now
        assert scenario.disks(at, disk0=Disk(offset=0)) == []
    assert scenario.space()["used_bytes"] == 96 * GIB


def test_a_replaced_image_resolves_the_levels_of_the_first() -> None:
    scenario = scenario_with_disk(Disk(offset=96 * GIB))
    assert scenario.disks(10, disk0=Disk(offset=0, path="/dev/vg/b", node="n2")) == [(*LEVEL, "resolved")] * 3
    assert {record.data["resolved_by"] for record in scenario.emitted[-3:]} == {"replaced"}
    assert "used_bytes" not in scenario.space()


def test_a_mirror_target_as_full_as_its_source_changes_nothing() -> None:
    scenario = scenario_with_disk(Disk(offset=85 * GIB))
    assert scenario.disks(10, disk0=Disk(offset=85 * GIB, path="/dev/vg/b", node="n2")) == []


def test_images_are_persisted_as_they_grow_and_forgotten_one_by_one() -> None:
    highest_writes = HighestWriteStore()
    highest_writes.update_highest_offset(ImageKey("/a", 1000), 100)
    assert list(highest_writes.entries_to_store()) == [("/a", [1000, 100, ""])]
    highest_writes.update_highest_offset(ImageKey("/a", 1000), 101)
    assert list(highest_writes.entries_to_store()) == []
    highest_writes.update_highest_offset(ImageKey("/a", 1000), 200)
    assert list(highest_writes.entries_to_store()) == [("/a", [1000, 200, ""])]
    for number in range(MAX_IMAGES):
        highest_writes.update_highest_offset(ImageKey(f"/{number}", 1), 1)
    assert ("/a", None) in list(highest_writes.entries_to_store())
    assert highest_writes.offset_of(ImageKey("/a", 1000)) == 0


@pytest.mark.parametrize("entry", [None, 5, [], [1], ["a", 2], [1, -2], [True, 2**64], {"size": 1}])
def test_invalid_image_entries_are_ignored(entry: object) -> None:
    highest_writes = HighestWriteStore()
    highest_writes.restore("/a", entry)
    assert highest_writes.offset_of(ImageKey("/a", 1)) == 0


# --- Corrupt images ---


def fire_corrupt_image(scenario: AlertScenario, *, fatal: bool = True) -> None:
    changes = scenario.event("BLOCK_IMAGE_CORRUPTED", 10, device="disk0", node_name="format", fatal=fatal)
    assert changes == [(*CORRUPT, "firing")]


def test_a_corrupt_image_resolves_when_its_disk_is_unplugged() -> None:
    scenario = scenario_with_disk(Disk())
    fire_corrupt_image(scenario)
    assert scenario.disks(11, disk0=Disk(corrupt=True)) == []
    assert scenario.disks(12, disk1=Disk(path="/dev/vg/b")) == [(*CORRUPT, "resolved")]


def test_a_corrupt_image_resolves_when_another_image_has_its_place() -> None:
    scenario = scenario_with_disk(Disk())
    fire_corrupt_image(scenario)
    assert scenario.disks(12, disk0=Disk(path="/dev/vg/b", format_node="f2")) == [(*CORRUPT, "resolved")]
    assert scenario.emitted[-1].data["resolved_by"] == "replaced"


@pytest.mark.parametrize("fatal", [True, False])
def test_a_sound_image_at_the_same_path_resolves_the_corrupt_one(fatal: bool) -> None:  # noqa: FBT001 - a table
    scenario = scenario_with_disk(Disk())
    fire_corrupt_image(scenario, fatal=fatal)
    assert scenario.disks(12, disk0=Disk(format_node="f2")) == [(*CORRUPT, "resolved")]


def test_an_image_that_is_not_marked_stays_corrupt_after_an_error_that_was_not_fatal() -> None:
    scenario = scenario_with_disk(Disk())
    fire_corrupt_image(scenario, fatal=False)
    assert scenario.disks(12, disk0=Disk()) == []


def test_a_poll_older_than_the_corruption_resolves_nothing() -> None:
    scenario = scenario_with_disk(Disk())
    fire_corrupt_image(scenario)
    assert scenario.disks(9, disk0=Disk()) == []


# --- Images that are no longer on top, and failed jobs ---


def test_an_own_threshold_on_a_backing_image_fires() -> None:
    scenario = scenario_with_disk(Disk(offset=10 * GIB), ThresholdMode.ARM)
    ((device, command),) = scenario.engine.threshold_commands.pop_pending_commands(VM)
    assert command.arguments is not None
    threshold = command.arguments["write-threshold"]
    scenario.engine.threshold_commands.on_command_done(VM, device, done=True)
    scenario.disks(10, disk0=Disk(path="/dev/vg/overlay", node="overlay"))
    changes = scenario.event(
        "BLOCK_WRITE_THRESHOLD", 11, node_name="storage", write_threshold=threshold, amount_exceeded=4096
    )
    assert changes == [(*LEVEL, "firing")]
    data = scenario.emitted[-1].data
    assert (data["owner"], data["layer"], data["path"]) == ("agent", "backing", "/dev/vg/lv")


def test_a_failed_block_job_fires_once_with_its_error() -> None:
    scenario = scenario_with_disk(Disk())
    changes = scenario.event("BLOCK_JOB_COMPLETED", 10, device="job0", type="commit", error="No space left on device")
    assert changes == [("job_failed", "job0", "firing")]
    assert scenario.emitted[-1].data["error"] == "No space left on device"
    assert scenario.jobs(11, job0="No space left on device") == [], "it is the same job"
    assert scenario.tick(10 + 3600) == [("job_failed", "job0", "resolved")]
    assert scenario.jobs(4000, job0="No space left on device") == [], "it waits to be dismissed"


def test_a_failed_job_is_detected_by_a_poll() -> None:
    scenario = scenario_with_disk(Disk())
    assert scenario.jobs(10, job0="", job1="Input/output error") == [("job_failed", "job1", "firing")]


def test_a_completed_job_fires_nothing() -> None:
    assert scenario_with_disk(Disk()).event("BLOCK_JOB_COMPLETED", 10, device="job0", type="commit") == []
