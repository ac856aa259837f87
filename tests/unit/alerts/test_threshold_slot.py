"""The threshold slot's state machine, compared with a model of QEMU's slot in any order of steps."""

from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from agent.alerts.threshold_slot import MAX_REFUSALS, TRANSITIONS, SlotInput, SlotState, ThresholdSlot
from tests.lab.threshold_model import Medium, Node

SIZE = 1000
OWN = st.integers(1, 9).map(lambda n: n * 100)
FOREIGN = st.integers(1, 9).map(lambda n: n * 100 + 1)


def test_every_state_can_be_reached_and_only_foreign_is_final() -> None:
    reached, pending = {SlotState.UNREAD}, [SlotState.UNREAD]
    while pending:
        for state in set(TRANSITIONS[pending.pop()].values()) - reached:
            reached.add(state)
            pending.append(state)
    assert reached == set(SlotState) == TRANSITIONS.keys()
    assert [state for state in SlotState if not TRANSITIONS[state]] == [SlotState.FOREIGN]


@pytest.mark.parametrize("state", set(SlotState) - {SlotState.FOREIGN})
def test_a_read_decides_whatever_the_state_was(state: SlotState) -> None:
    assert TRANSITIONS[state][SlotInput.READ_EMPTY] is SlotState.EMPTY
    assert TRANSITIONS[state][SlotInput.READ_OURS] is SlotState.OURS
    assert TRANSITIONS[state][SlotInput.READ_FOREIGN] is SlotState.FOREIGN
    assert TRANSITIONS[state][SlotInput.READ_REFUSED] is SlotState.REFUSED


class SlotMachine(RuleBasedStateMachine):
    """A slot in QEMU, another client that uses it too, and the agent that reads and sets it."""

    def __init__(self) -> None:
        super().__init__()
        self.node = Node("storage", Medium("/dev/vg/lv", SIZE))
        self.slot = ThresholdSlot()
        self.events: list[dict[str, Any]] = []
        self.command: int | None = None  # in transit
        self.read_foreign = False
        self.failures = 0  # in a row
        self.is_fresh = False  # whether nothing happened to the slot in QEMU since the last read

    @rule(end=st.integers(1, SIZE))
    def write(self, end: int) -> None:
        event = self.node.write(end)
        if event is not None:
            self.is_fresh = False
            self.events.append(event)

    @rule(value=FOREIGN)
    def other_client_sets(self, value: int) -> None:
        self.node.slot, self.is_fresh = value, False

    @rule()
    def other_client_clears(self) -> None:
        self.node.slot, self.is_fresh = 0, False

    @precondition(lambda self: self.command is None)  # a session sends one command at a time
    @rule()
    def read(self) -> None:
        value, expected = self.node.slot, self.slot.threshold
        was_unknown = self.slot.state is SlotState.UNKNOWN
        has_fired = self.slot.on_read(self.node.name, value, is_level=False)
        self.read_foreign = self.read_foreign or value % 100 == 1
        self.is_fresh = True
        assert has_fired == (expected is not None and expected[1] != value and not was_unknown) or self.read_foreign
        if self.read_foreign:
            assert self.slot.state is SlotState.FOREIGN
        elif value:
            assert (self.slot.state, self.slot.threshold) == (SlotState.OURS, (self.node.name, value))
        else:
            refused = self.failures >= MAX_REFUSALS
            assert self.slot.state is (SlotState.REFUSED if refused else SlotState.EMPTY)

    @precondition(lambda self: self.slot.state is SlotState.EMPTY and self.command is None)
    @rule(value=OWN)
    def send(self, value: int) -> None:
        self.command = value
        self.slot.on_send(self.node.name, value)
        assert self.slot.state is SlotState.OURS

    @precondition(lambda self: self.command is not None)
    @rule(executed=st.booleans(), response=st.booleans())
    def finish(self, executed: bool, response: bool) -> None:  # noqa: FBT001 - drawn by hypothesis
        """End the command. QEMU may have executed it although its response was lost."""
        assert self.command is not None
        if executed:
            self.node.slot = self.command
        self.command, self.is_fresh = None, False
        done = executed and response
        self.failures = 0 if done else self.failures + 1
        self.slot.on_command_done(self.node.name, done=done)
        assert done or self.read_foreign or self.slot.needs_read

    @precondition(lambda self: self.events)
    @rule()
    def deliver(self) -> None:
        event = self.events.pop(0)
        before, value = self.slot.state, event["write-threshold"]
        self.slot.on_fired(event["node-name"], value)
        if value == self.command:
            self.is_fresh = False  # the event of an earlier threshold with the value that is being set again
        if value % 100 == 1:
            assert self.slot.state is before, "an event of another client changes nothing"

    @rule(executed=st.booleans())
    def restart_agent(self, executed: bool) -> None:  # noqa: FBT001 - drawn by hypothesis
        if self.command is not None and executed:
            self.node.slot = self.command
        note, self.slot = self.slot.to_note(), ThresholdSlot()
        self.slot.restore(note)
        self.events, self.command, self.read_foreign, self.failures, self.is_fresh = [], None, False, 0, False

    @invariant()
    def state_and_threshold_agree(self) -> None:
        may_hold = self.slot.state in (SlotState.OURS, SlotState.UNREAD, SlotState.UNKNOWN)
        assert self.slot.threshold is None or may_hold
        assert self.slot.state is not SlotState.OURS or self.slot.threshold is not None

    @invariant()
    def a_fresh_state_is_true(self) -> None:
        if self.is_fresh and not self.slot.is_foreign and not self.events:
            holds = self.slot.threshold[1] if self.slot.threshold is not None else 0
            assert holds == (self.command or self.node.slot)


SlotMachine.TestCase.settings = settings(max_examples=200, stateful_step_count=40, deadline=None)
TestSlotMachine = SlotMachine.TestCase
