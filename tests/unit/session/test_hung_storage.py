"""Commands that access storage: a session sends them only while the storage of its VM answers."""

from agent.model.record import Vm
from agent.session.shared_types import PollOutcome
from tests.lab.fake_qemu import FakeQemu
from tests.lab.recording_observer import RecordingObserver, session_context, supervised

WAITING_COMMANDS = ("query-named-block-nodes", "query-block")


class FakeStorage:
    """Storage of all VMs that answers or hangs.

    Attributes:
        answers: Whether it answers.
        vms: The VMs that were asked for.
    """

    def __init__(self, *, answers: bool) -> None:
        self.answers = answers
        self.vms: list[Vm] = []

    async def may_query(self, vm: Vm, pid: int | None) -> bool:  # noqa: ARG002 - the interface of sessions
        self.vms.append(vm)
        return self.answers


async def test_a_command_that_accesses_storage_is_deferred_until_the_storage_answers(fake: FakeQemu) -> None:
    observer, storage = RecordingObserver(), FakeStorage(answers=False)
    context = session_context()
    context.storage = storage
    async with supervised(observer, fake.path, context=context):
        await observer.wait_until(lambda: observer.outcomes("nodes") and observer.outcomes("drives"))
        await observer.wait_for_polls(3)
        assert {name: fake.count(name) for name in WAITING_COMMANDS} == dict.fromkeys(WAITING_COMMANDS, 0)
        assert set(observer.outcomes("nodes")) == {PollOutcome.DEFERRED}
        storage.answers = True
        context.schedule_vm_collectors_now(storage.vms[-1], ("nodes", "drives"))
        await observer.wait_until(lambda: PollOutcome.OK in observer.outcomes("nodes"))
        await observer.wait_until(lambda: PollOutcome.OK in observer.outcomes("drives"))
        assert all(fake.count(name) for name in WAITING_COMMANDS)
    assert context.schedule_by_vm == {}


async def test_a_poll_without_such_a_command_does_not_ask_the_storage(fake: FakeQemu) -> None:
    observer, storage = RecordingObserver(), FakeStorage(answers=True)
    context = session_context()
    context.storage = storage
    async with supervised(observer, fake.path, context=context):
        await observer.wait_until(lambda: PollOutcome.OK in observer.outcomes("drives"))
        asked = len(storage.vms)
        await observer.wait_for_polls(5)
        assert len(storage.vms) == asked


async def test_a_demand_for_a_vm_that_is_not_attached_is_ignored(fake: FakeQemu) -> None:
    context = session_context()
    context.schedule_vm_collectors_now(Vm("host1", "", "", str(fake.path)), ("nodes",))
    assert fake.requests == []
