"""The threshold slot's state machine, compared with a model of QEMU's slot in any order of steps."""

from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from agent.alerts.write_threshold_slot import (
    MAX_REFUSALS,
    WRITE_THRESHOLD_TRANSITIONS,
    WriteThresholdSlot,
    WriteThresholdSlotInput,
    WriteThresholdSlotState,
)
from tests.lab.threshold_model import Medium, Node

SIZE = 1000
OWN = st.integers(1, 9).map(lambda n: n * 100)
FOREIGN = st.integers(1, 9).map(lambda n: n * 100 + 1)


def test_every_state_can_be_reached_and_only_foreign_is_final() -> None:
    reached, pending = {WriteThresholdSlotState.UNREAD}, [WriteThresholdSlotState.UNREAD]
    while pending:
        for state in set(WRITE_THRESHOLD_TRANSITIONS[pending.pop()].values()) - reached:
            reached.add(state)
            pending.append(state)
    assert reached == set(WriteThresholdSlotState) == WRITE_THRESHOLD_TRANSITIONS.keys()
    assert [state for state in WriteThresholdSlotState if not WRITE_THRESHOLD_TRANSITIONS[state]] == [
        WriteThresholdSlotState.FOREIGN
    ]


@pytest.mark.parametrize(
    "state", [state for state in WriteThresholdSlotState if state is not WriteThresholdSlotState.FOREIGN]
)
def test_a_read_decides_whatever_the_state_was(state: WriteThresholdSlotState) -> None:
    assert WRITE_THRESHOLD_TRANSITIONS[state][WriteThresholdSlotInput.READ_EMPTY] is WriteThresholdSlotState.EMPTY
    assert WRITE_THRESHOLD_TRANSITIONS[state][WriteThresholdSlotInput.READ_OURS] is WriteThresholdSlotState.OURS
    assert WRITE_THRESHOLD_TRANSITIONS[state][WriteThresholdSlotInput.READ_FOREIGN] is WriteThresholdSlotState.FOREIGN
    assert WRITE_THRESHOLD_TRANSITIONS[state][WriteThresholdSlotInput.READ_REFUSED] is WriteThresholdSlotState.REFUSED


class SlotMachine(RuleBasedStateMachine):
    """A slot in QEMU, another client that uses it too, and the agent that reads and sets it."""

    def __init__(self) -> None:
        super().__init__()
        self.node = Node("storage", Medium("/dev/vg/lv", SIZE))
        self.slot = WriteThresholdSlot()
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
        was_unknown = self.slot.state is WriteThresholdSlotState.UNKNOWN
        has_fired = self.slot.on_read(self.node.name, value, is_level=False)
        self.read_foreign = self.read_foreign or value % 100 == 1
        self.is_fresh = True
        assert has_fired == (expected is not None and expected[1] != value and not was_unknown) or self.read_foreign
        if self.read_foreign:
            assert self.slot.state is WriteThresholdSlotState.FOREIGN
        elif value:
            assert (self.slot.state, self.slot.threshold) == (WriteThresholdSlotState.OURS, (self.node.name, value))
        else:
            refused = self.failures >= MAX_REFUSALS
            assert self.slot.state is (WriteThresholdSlotState.REFUSED if refused else WriteThresholdSlotState.EMPTY)

    @precondition(lambda self: self.slot.state is WriteThresholdSlotState.EMPTY and self.command is None)
    @rule(value=OWN)
    def send(self, value: int) -> None:
        self.command = value
        self.slot.on_command_send(self.node.name, value)
        assert self.slot.state is WriteThresholdSlotState.OURS

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
        if value in (self.command, self.node.slot):
            self.is_fresh = False  # the event is of an earlier threshold of the same value
        if value % 100 == 1:
            assert self.slot.state is before, "an event of another client changes nothing"

    @rule(executed=st.booleans())
    def restart_agent(self, executed: bool) -> None:  # noqa: FBT001 - drawn by hypothesis
        if self.command is not None and executed:
            self.node.slot = self.command
        entry, self.slot = self.slot.state_to_store(), WriteThresholdSlot()
        self.slot.restore(entry)
        self.events, self.command, self.read_foreign, self.failures, self.is_fresh = [], None, False, 0, False

    @invariant()
    def state_and_threshold_agree(self) -> None:
        may_hold = self.slot.state in (
            WriteThresholdSlotState.OURS,
            WriteThresholdSlotState.UNREAD,
            WriteThresholdSlotState.UNKNOWN,
        )
        assert self.slot.threshold is None or may_hold
        assert self.slot.state is not WriteThresholdSlotState.OURS or self.slot.threshold is not None

    @invariant()
    def a_fresh_state_is_true(self) -> None:
        if self.is_fresh and not self.slot.is_foreign and not self.events:
            holds = self.slot.threshold[1] if self.slot.threshold is not None else 0
            assert holds == (self.command or self.node.slot)


SlotMachine.TestCase.settings = settings(max_examples=200, stateful_step_count=40, deadline=None)
TestSlotMachine = SlotMachine.TestCase
