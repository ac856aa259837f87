"""Lifecycle changes that a session reports when a monitor's state changes."""

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from agent.session.shared_types import MonitorState, VmLifecycleChange, lifecycle_change_between_states

REPORTED_BY_SESSIONS = [MonitorState.UP, MonitorState.NEGOTIATING, MonitorState.STALLED, MonitorState.BUSY]


@given(st.lists(st.sampled_from(REPORTED_BY_SESSIONS), min_size=2, max_size=30))
def test_each_stall_is_reported_once_and_its_end_is_reported_before_the_next(walk: list[MonitorState]) -> None:
    changes = [
        change
        for before, after in pairwise(walk)
        if before is not after
        for change in [lifecycle_change_between_states(before, after)]
    ]
    states = [after for before, after in pairwise(walk) if before is not after]
    for state, change in zip(states, changes, strict=True):
        assert (change is VmLifecycleChange.STALLED) is (state is MonitorState.STALLED)
        assert (change is VmLifecycleChange.BUSY) is (state is MonitorState.BUSY)
    reported = [change for change in changes if change is not None]
    for before, after in pairwise(reported):
        assert before is not VmLifecycleChange.STALLED or after in (VmLifecycleChange.RECOVERED, VmLifecycleChange.BUSY)
        assert before is not VmLifecycleChange.RECOVERED or after is not VmLifecycleChange.RECOVERED


@given(st.sampled_from(MonitorState), st.sampled_from(MonitorState))
def test_only_busy_stalled_and_their_end_are_reported(before: MonitorState, after: MonitorState) -> None:
    change = lifecycle_change_between_states(before, after)
    assert change in (None, VmLifecycleChange.BUSY, VmLifecycleChange.STALLED, VmLifecycleChange.RECOVERED)
    if change is VmLifecycleChange.RECOVERED:
        assert before in (MonitorState.STALLED, MonitorState.BUSY)
