"""A QEMU that stalls on one order is given none of the others: what they were made of is old by then."""

from agent.qmp.commands import Change
from tests.lab.fake_qemu import FakeQemu
from tests.lab.recording_observer import RecordingObserver, quick_context, supervised
from tests.unit.session.test_threshold_commands import Orders, sent, threshold


async def test_orders_that_are_left_when_qemu_stalls_are_not_made(fake: FakeQemu) -> None:
    fake.hang("block-set-write-threshold")
    observer = RecordingObserver()
    orders = Orders(a=threshold("n1"), b=threshold("n2"))
    async with supervised(observer, fake.path, context=quick_context(Change.WRITE_THRESHOLD, thresholds=orders)):
        await observer.wait_until(lambda: observer.records("vm.stalled"))
        fake.release("block-set-write-threshold")
        await observer.wait_until(lambda: observer.records("vm.recovered"))
        await observer.wait_for_polls(2)
    assert sent(fake) == ["n1"]
    assert orders.detected_by == [("a", False), ("b", False)]
