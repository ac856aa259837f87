"""Threshold commands after a stall are dropped, because they were computed from old samples."""

from agent.qmp.commands import OptInQemuChange
from tests.lab.fake_qemu import FakeQemu
from tests.lab.recording_observer import RecordingObserver, session_context, supervised
from tests.unit.session.test_threshold_commands import RecordingController, nodes_of_commands, threshold


async def test_commands_that_remain_after_a_stall_are_dropped(fake: FakeQemu) -> None:
    fake.hang("block-set-write-threshold")
    observer = RecordingObserver()
    controller = RecordingController(a=threshold("n1"), b=threshold("n2"))
    async with supervised(
        observer,
        fake.path,
        context=session_context(OptInQemuChange.WRITE_THRESHOLD, thresholds=controller),
    ):
        await observer.wait_until(lambda: observer.records("vm.stalled"))
        fake.release("block-set-write-threshold")
        await observer.wait_until(lambda: observer.records("vm.recovered"))
        await observer.wait_for_polls(2)
    assert nodes_of_commands(fake) == ["n1"]
    assert controller.outcomes == [("a", False), ("b", False)]
