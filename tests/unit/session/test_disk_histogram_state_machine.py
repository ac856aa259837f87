"""The state machine of a disk's latency histograms, as a table, and against a model of QEMU with other clients."""

from copy import copy
from dataclasses import dataclass

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from agent.session.disk_histogram_state_machine import (
    HISTOGRAM_TRANSITIONS,
    MAX_REFUSALS,
    BoundariesNs,
    DiskHistogramStateMachine,
    HistogramState,
    HistogramStateInput,
)

OWN: BoundariesNs = (1_000_000, 10_000_000)
FOREIGN: BoundariesNs = (2_000_000,)

TABLE = """
          read_none read_ours read_foreign send  fail    refuse  replug
unread    none      agent     other        -     -       -       unread
none      -         -         other        agent -       -       unread
agent     removed   -         other        -     unknown refused unread
other     removed   -         other        -     -       -       unread
unknown   none      agent     other        -     -       -       unread
refused   -         agent     other        -     -       -       unread
removed   -         other     other        -     -       -       unread
"""
"""The next state for each state (row) and input (column); a dash for no change."""


def test_the_table_of_transitions_is_as_documented() -> None:
    heading, *rows = (line.split() for line in TABLE.strip().splitlines())
    assert set(heading) == {entry.value for entry in HistogramStateInput}
    assert [row[0] for row in rows] == [state.value for state in HistogramState]
    for name, *following in rows:
        for entry, after in zip(heading, following, strict=True):
            expected = None if after == "-" else HistogramState(after)
            assert HISTOGRAM_TRANSITIONS[HistogramState(name)].get(HistogramStateInput(entry)) == expected, (
                name,
                entry,
            )


def test_only_a_disk_without_histograms_is_due() -> None:
    due = [state for state in HistogramState if DiskHistogramStateMachine(state, device="disk0").may_set]
    assert due == [HistogramState.NONE]
    assert not DiskHistogramStateMachine(HistogramState.NONE, device="").may_set


def seconds(boundaries: BoundariesNs | None) -> list[float] | None:
    return [bound / 1e9 for bound in boundaries] if boundaries is not None else None


@pytest.mark.parametrize("again", [(4, 9), (5, 8), (0, 0)])
def test_a_disk_with_fewer_operations_is_another_disk(again: tuple[int, int]) -> None:
    histograms = DiskHistogramStateMachine()
    histograms.on_poll(None, (5, 9), "disk0")
    histograms.on_command_send(OWN)
    histograms.on_command_done(done=True)
    histograms.on_poll(seconds(OWN), (5, 9), "disk0")
    histograms.on_poll(None, again, "disk0")
    assert (histograms.state, histograms.may_set) == (HistogramState.NONE, True)


@pytest.mark.parametrize("boundaries", [OWN, FOREIGN])
def test_a_reply_that_is_older_than_the_unplug_changes_nothing(boundaries: BoundariesNs) -> None:
    histograms = DiskHistogramStateMachine()
    histograms.on_poll(None, (5,), "disk0")
    histograms.on_command_send(OWN)
    histograms.on_command_done(done=True)
    histograms.on_poll(seconds(boundaries), (5,), "disk0")
    histograms.is_unplugged = True
    histograms.on_poll(seconds(boundaries), (5,), "disk0")
    histograms.on_poll(None, (9,), "disk0")
    assert histograms.may_set


def test_a_disk_at_another_path_is_another_disk() -> None:
    histograms = DiskHistogramStateMachine()
    histograms.on_poll(seconds(FOREIGN), (5,), "/machine/peripheral/disk0")
    histograms.on_poll(None, (5,), "/machine/peripheral/disk0/virtio-backend")
    assert histograms.may_set


def test_a_refused_command_is_tried_a_few_times() -> None:
    histograms = DiskHistogramStateMachine()
    for _ in range(MAX_REFUSALS):
        histograms.on_poll(None, (), "disk0")
        assert histograms.may_set
        histograms.on_command_send(OWN)
        histograms.on_command_done(done=False)
    histograms.on_poll(None, (), "disk0")
    assert (histograms.state, histograms.may_set) == (HistogramState.REFUSED, False)


def test_refusals_by_a_disk_do_not_count_for_the_disk_that_replaces_it() -> None:
    histograms = DiskHistogramStateMachine()
    for disk in ("disk0", "disk1"):
        for _ in range(MAX_REFUSALS - 1):
            histograms.on_poll(None, (), disk)
            histograms.on_command_send(OWN)
            histograms.on_command_done(done=False)
    assert histograms.state is HistogramState.UNKNOWN
    histograms.on_poll(None, (), "disk1")
    histograms.on_command_send(OWN)
    histograms.on_command_done(done=True)
    assert (histograms.state, histograms.refusals) == (HistogramState.OURS, 0)


def test_a_command_that_was_executed_without_a_response_is_recognized() -> None:
    histograms = DiskHistogramStateMachine()
    histograms.on_poll(None, (), "disk0")
    histograms.on_command_send(OWN)
    histograms.on_command_done(done=False)
    histograms.on_poll(seconds(OWN), (), "disk0")
    assert histograms.state is HistogramState.OURS


@dataclass
class ModelDisk:
    """A disk in QEMU: its histograms' boundaries, who set them, and how many operations it had."""

    boundaries: BoundariesNs | None = None
    setter: str = ""
    operations: int = 0
    touched_by_other: bool = False


class OwnershipMachine(RuleBasedStateMachine):
    """An agent, other clients, replugs and lost responses in any order. A poll precedes each command, as in a session."""

    def __init__(self) -> None:
        super().__init__()
        self.histograms = DiskHistogramStateMachine()
        self.disk = ModelDisk()
        self.is_replug_unnoticed = False

    @rule(executed=st.booleans(), confirmed=st.booleans())
    def poll_and_set(self, *, executed: bool, confirmed: bool) -> None:
        self.histograms.on_poll(seconds(self.disk.boundaries), (self.disk.operations,), "disk0")
        if not self.histograms.may_set:
            return
        self.is_replug_unnoticed = False
        assert self.disk.boundaries is None, "the agent would replace histograms"
        self.histograms.on_command_send(OWN)
        if executed or confirmed:
            self.disk.boundaries, self.disk.setter = OWN, "agent"
        self.histograms.on_command_done(done=confirmed)

    @rule(count=st.integers(1, 9))
    def operate(self, count: int) -> None:
        self.disk.operations += count

    @rule(boundaries=st.sampled_from([FOREIGN, OWN]))
    def other_client_sets(self, boundaries: BoundariesNs) -> None:
        self.disk.boundaries, self.disk.setter, self.disk.touched_by_other = boundaries, "other", True

    @rule()
    def other_client_removes(self) -> None:
        self.disk.boundaries, self.disk.touched_by_other = None, True

    @rule(is_reply_late=st.booleans())
    def replug_with_event(self, *, is_reply_late: bool) -> None:
        self.histograms.is_unplugged = True
        if is_reply_late:  # QEMU sent the reply before the event, and the agent handles it afterwards
            self.histograms.on_poll(seconds(self.disk.boundaries), (self.disk.operations,), "disk0")
        self.disk = ModelDisk()

    @precondition(lambda self: self.disk.operations > 0 and self.histograms.operations > (0,))
    @rule()
    def replug_between_two_polls(self) -> None:
        """Replug without the event. The agent cannot notice it if the new disk has as many operations as the old one had."""
        self.disk = ModelDisk()
        self.is_replug_unnoticed = True

    @rule()
    def restart(self) -> None:
        self.histograms = DiskHistogramStateMachine(
            own_boundaries=self.histograms.own_boundaries, refusals=self.histograms.refusals
        )

    @invariant()
    def a_disk_that_nobody_else_touched_gets_histograms(self) -> None:
        histograms = copy(self.histograms)
        histograms.on_poll(seconds(self.disk.boundaries), (self.disk.operations,), "disk0")
        if self.disk.boundaries is None and not self.disk.touched_by_other and not self.is_replug_unnoticed:
            assert histograms.state in (HistogramState.NONE, HistogramState.REFUSED)

    @invariant()
    def another_clients_histograms_are_not_called_the_agents(self) -> None:
        histograms = copy(self.histograms)
        histograms.on_poll(seconds(self.disk.boundaries), (self.disk.operations,), "disk0")
        if self.disk.boundaries == FOREIGN:
            assert histograms.state is HistogramState.FOREIGN
        if self.disk.setter == "agent" and not self.disk.touched_by_other:
            assert histograms.state is HistogramState.OURS


TestOwnership = OwnershipMachine.TestCase
