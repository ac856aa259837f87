"""The disk in the alert of an I/O error: its device, path and usage, by any name that the event has for the disk."""

from typing import Any

import pytest

from agent.model.family import Sample
from agent.model.metrics.block_layers import BLOCK_NAMES
from tests.lab.alert_scenario import AlertScenario
from tests.lab.thin_disks import GIB, VM, Disk

DISK_FULL = ("disk_full", "disk0", "firing")
DISK = Disk(offset=50 * GIB)
FIGURES = {"path": "/dev/vg/lv", "used_bytes": 50 * GIB, "limit_bytes": 100 * GIB, "free_bytes": 50 * GIB}


@pytest.fixture
def scenario() -> AlertScenario:
    scenario = AlertScenario()
    scenario.attach()
    scenario.run_state("running", 1)
    scenario.disks(1, disk0=DISK, disk1=Disk(node="n1", format_node="f1", path="/dev/vg/lv1"))
    return scenario


@pytest.mark.parametrize(
    "named",
    [
        {"qom_path": "/machine/peripheral/disk0/virtio-backend", "device": ""},
        {"device": "disk0"},
        {"device": "", "node_name": "format"},
        {"device": "", "node_name": "storage"},
    ],
)
def test_an_error_that_names_a_known_node_has_the_disks_figures(scenario: AlertScenario, named: dict[str, Any]) -> None:
    assert scenario.io_error(10, **named) == [DISK_FULL]
    assert scenario.emitted[-1].data.items() >= FIGURES.items()
    assert scenario.emitted[-1].data["detected_by"] == "enospc"


@pytest.mark.parametrize("alias", ["drive-scsi0", "libvirt-CoR-vda"])
def test_an_error_that_names_a_backend_or_a_filter_has_the_disks_figures(scenario: AlertScenario, alias: str) -> None:
    counters = DISK.counter_sample()
    sample = Sample(counters.family, counters.labels, counters.values | {"backend": "drive-scsi0", "node": alias})
    scenario.engine.on_disk_samples(VM, [sample], 2, 2)
    key = "device" if alias.startswith("drive") else "node_name"
    named: dict[str, Any] = {"device": "", key: alias}
    assert scenario.io_error(10, **named) == [DISK_FULL]
    assert scenario.emitted[-1].data.items() >= FIGURES.items()


@pytest.mark.parametrize("named", [{"device": "", "node_name": "#block269"}, {"device": "drive-scsi0"}])
def test_an_error_under_the_filter_of_a_job_has_the_disks_figures(
    scenario: AlertScenario, named: dict[str, Any]
) -> None:
    names = Sample(BLOCK_NAMES, ("disk0",), {"names": ["#block269", "drive-scsi0"]})
    scenario.engine.on_disk_samples(VM, [names], 2, 2, families=(BLOCK_NAMES,))
    assert scenario.io_error(10, **named) == [DISK_FULL]
    assert scenario.emitted[-1].data.items() >= FIGURES.items()
    scenario.event("RESUME", 11)
    scenario.engine.on_disk_samples(VM, [], 12, 12, families=(BLOCK_NAMES,))
    assert scenario.io_error(13, device="", node_name="#block269") == [], "the job has ended"


@pytest.mark.parametrize("node", ["#block269", "mirror-filter"])
def test_an_error_on_an_unknown_node_is_located_by_io_status(scenario: AlertScenario, node: str) -> None:
    assert scenario.io_error(10, device="", node_name=node) == []
    assert "drives" in scenario.engine.threshold_commands.pop_collectors_to_poll(VM)
    assert scenario.io_status(9, disk0="nospace") == [], "the poll is older than the error"
    assert scenario.io_status(11, disk0="nospace", disk1="ok") == [DISK_FULL]
    assert scenario.emitted[-1].data.items() >= FIGURES.items()
    assert scenario.emitted[-1].time_ns == 10 * 10**9


def test_a_poll_of_the_run_state_keeps_the_cause_of_an_unlocated_error(scenario: AlertScenario) -> None:
    assert scenario.io_error(10, device="", node_name="#block269") == []
    assert scenario.run_state("io-error", 10.5) == []
    assert scenario.io_status(11, disk0="nospace", disk1="ok") == [DISK_FULL]
    assert scenario.emitted[-1].data["detected_by"] == "enospc"


def test_a_poll_of_the_run_state_keeps_the_alert_of_an_error_without_a_disk(scenario: AlertScenario) -> None:
    scenario.io_error(10, device="", node_name="#block269")
    assert scenario.run_state("io-error", 10.5) == []
    assert scenario.tick(12) == [("disk_full", "", "firing")]


def test_an_error_that_io_status_does_not_locate_is_reported_without_a_disk(scenario: AlertScenario) -> None:
    scenario.io_error(10, device="", node_name="#block269")
    assert scenario.tick(11) == []
    assert scenario.tick(12) == [("disk_full", "", "firing")]


def test_an_error_without_a_disk_is_replaced_when_io_status_arrives_late(scenario: AlertScenario) -> None:
    scenario.run_state("io-error", 10)
    assert scenario.tick(13) == [("io_error_stop", "", "firing")]
    assert scenario.io_status(14, disk0="nospace") == [("io_error_stop", "", "resolved"), DISK_FULL]
    assert scenario.event("RESUME", 15) == [("disk_full", "disk0", "resolved")]


def test_an_unlocated_error_is_dropped_when_the_guest_runs_again(scenario: AlertScenario) -> None:
    scenario.io_error(10, device="", node_name="#block269")
    scenario.event("STOP", 10.1)
    assert scenario.event("RESUME", 11) == []
    assert scenario.io_status(12, disk0="ok") == []
    assert scenario.tick(20) == []


def test_a_full_disk_at_attach_is_located_by_io_status() -> None:
    scenario = AlertScenario()
    scenario.attach()
    assert scenario.run_state("io-error", 1) == []
    assert "drives" in scenario.engine.threshold_commands.pop_collectors_to_poll(VM)
    assert scenario.io_status(1, disk0="nospace", disk1="ok") == [], "the disks are not polled yet"
    assert scenario.disks(1, disk0=DISK) == [DISK_FULL]
    assert scenario.emitted[-1].data.items() >= FIGURES.items()
    assert scenario.emitted[-1].data["detected_by"] == "missed"


def test_a_failed_disk_at_attach_is_no_full_one() -> None:
    scenario = AlertScenario()
    scenario.attach()
    scenario.disks(1, disk0=DISK)
    scenario.run_state("io-error", 1)
    assert scenario.io_status(1, disk0="failed") == [("io_error_stop", "disk0", "firing")]


def test_a_corrupt_image_with_a_backend_name_has_the_device(scenario: AlertScenario) -> None:
    counters = DISK.counter_sample()
    sample = Sample(counters.family, counters.labels, counters.values | {"backend": "drive0"})
    scenario.engine.on_disk_samples(VM, [sample], 2, 2)
    changes = scenario.event("BLOCK_IMAGE_CORRUPTED", 10, device="drive0", node_name="format", fatal=True)
    assert changes == [("image_corrupted", "disk0", "firing")]
    assert scenario.emitted[-1].data["path"] == "/dev/vg/lv"
