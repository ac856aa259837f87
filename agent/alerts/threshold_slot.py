"""State machine of one write-threshold slot in QEMU. Pure.

QEMU has one slot for each block node. Any client can overwrite it. It becomes empty when it fires. A threshold below the highest write
does nothing until the next write. The agent therefore reads the slot first, and never replaces another client's value. It remembers a
threshold before it sets it: if the slot is empty later, the threshold has fired or was cleared in the meantime.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from types import MappingProxyType
from typing import Any

from agent.alerts.levels import MAX_BYTES

MAX_OWN_THRESHOLDS = 16
"""How many of the agent's own thresholds are remembered. An event may arrive after a reply with an empty slot, or from an earlier node."""
MAX_REFUSALS = 3
"""Number of failed commands in a row after which the agent no longer sets a node's threshold."""

Threshold = tuple[str, int]
"""A block node and the value in its slot, in bytes."""


class SlotState(StrEnum):
    """The agent's knowledge of the slot."""

    UNREAD = "unread"
    """Not read since the agent attached. It may hold a threshold of an earlier run."""
    EMPTY = "empty"
    """It is empty: the agent may set it."""
    OURS = "ours"
    """It holds the agent's value, or the command that sets it is under way."""
    FOREIGN = "foreign"
    """It held another client's value once: the agent never sets it again."""
    UNKNOWN = "unknown"
    """A command failed or got no response, so QEMU may or may not have set it. It has to be read."""
    REFUSED = "refused"
    """It is empty, and QEMU refused the agent's commands. The agent waits for another node."""


class SlotInput(StrEnum):
    """An input of the state machine."""

    READ_EMPTY = "read_empty"
    READ_OURS = "read_ours"
    READ_FOREIGN = "read_foreign"
    READ_REFUSED = "read_refused"
    """Empty, after `MAX_REFUSALS` failed commands for this node."""
    SEND = "send"
    """The agent is about to send the command that sets it."""
    FAIL = "fail"
    """QEMU refused the command, or its response did not arrive."""
    FIRE = "fire"
    """QEMU reported a write beyond the value, and emptied the slot."""


_READS = {
    SlotInput.READ_EMPTY: SlotState.EMPTY,
    SlotInput.READ_OURS: SlotState.OURS,
    SlotInput.READ_FOREIGN: SlotState.FOREIGN,
    SlotInput.READ_REFUSED: SlotState.REFUSED,
}

TRANSITIONS: Mapping[SlotState, Mapping[SlotInput, SlotState]] = MappingProxyType(
    {
        SlotState.UNREAD: _READS | {SlotInput.FAIL: SlotState.UNKNOWN},
        SlotState.EMPTY: _READS | {SlotInput.SEND: SlotState.OURS, SlotInput.FAIL: SlotState.UNKNOWN},
        SlotState.OURS: _READS | {SlotInput.FIRE: SlotState.EMPTY, SlotInput.FAIL: SlotState.UNKNOWN},
        SlotState.FOREIGN: {},
        SlotState.UNKNOWN: _READS,
        SlotState.REFUSED: _READS,
    }
)
"""The next state by state and input. An input that is not listed changes nothing."""


@dataclass(slots=True)
class ThresholdSlot:
    """The agent's knowledge of the write-threshold slot of a disk's storage node.

    Attributes:
        state: The state of the slot.
        threshold: The agent's own threshold in the slot. In UNREAD and UNKNOWN it is uncertain whether the slot holds it.
    """

    state: SlotState = SlotState.UNREAD
    threshold: Threshold | None = None
    _own: list[Threshold] = field(default_factory=list)  # the thresholds that the agent set last, the newest at the end
    _refusals: dict[str, int] = field(default_factory=dict)  # failed commands in a row, by node

    @property
    def is_foreign(self) -> bool:
        """True if another client uses it."""
        return self.state is SlotState.FOREIGN

    @property
    def needs_read(self) -> bool:
        """True if a command's outcome is unknown: the slot has to be read before anything else."""
        return self.state is SlotState.UNKNOWN

    def owns(self, node: str, value: int) -> bool:
        """Return whether the agent set this threshold, even on a node that is no longer the disk's storage."""
        return self.threshold == (node, value) or (node, value) in self._own

    def read(self, node: str, value: int, *, is_level: bool) -> bool:
        """Handle the slot's value as QEMU reports it.

        Args:
            node: The storage node.
            value: The value in its slot; 0 if it is empty.
            is_level: Whether the agent itself would set this value. Then an earlier run set it, and could not persist it.

        Returns:
            True if the agent's threshold has fired or was cleared since the last read.
        """
        before, was_unknown = self.threshold, self.needs_read
        self._apply(self._classify(node, value, is_level=is_level))
        self.threshold = (node, value) if self.state is SlotState.OURS else None
        return before is not None and before[0] == node and before != self.threshold and not was_unknown

    def _classify(self, node: str, value: int, *, is_level: bool) -> SlotInput:
        if not value:
            refused = self._refusals.get(node, 0) >= MAX_REFUSALS
            return SlotInput.READ_REFUSED if refused else SlotInput.READ_EMPTY
        return SlotInput.READ_OURS if is_level or self.owns(node, value) else SlotInput.READ_FOREIGN

    def send(self, node: str, value: int) -> None:
        """Remember this threshold before its command is sent. It counts as set from now on."""
        self._apply(SlotInput.SEND)
        self.threshold = (node, value)
        self._own = [*(own for own in self._own if own != self.threshold), self.threshold][-MAX_OWN_THRESHOLDS:]

    def on_command_done(self, node: str, *, done: bool) -> None:
        """Handle the outcome of the command that set the threshold; `done` says whether QEMU confirmed it."""
        if done:
            self._refusals.pop(node, None)
        else:
            self._refusals[node] = self._refusals.get(node, 0) + 1
            self._apply(SlotInput.FAIL)

    def fire(self, node: str, value: int) -> None:
        """Handle the event of the agent's own threshold. In UNREAD, `threshold` is kept: the first read then reports it as missed."""
        if self.threshold == (node, value) and self.state is not SlotState.UNREAD:
            self.threshold = None
            self._apply(SlotInput.FIRE)

    def _apply(self, happened: SlotInput) -> None:
        self.state = TRANSITIONS[self.state].get(happened, self.state)

    def to_note(self) -> dict[str, Any]:
        """Return the state that has to survive a restart of the agent, as JSON values."""
        return {
            "threshold": list(self.threshold) if self.threshold is not None else None,
            "own_thresholds": [list(own) for own in self._own],
        }

    def restore(self, note: Mapping[str, Any]) -> None:
        """Restore a note that `to_note` returned in an earlier run; other values are ignored."""
        own = note.get("own_thresholds")
        parsed = map(parse_place, own if isinstance(own, list) else ())
        self.threshold = parse_place(note.get("threshold"))
        self._own = [place for place in parsed if place is not None][-MAX_OWN_THRESHOLDS:]


def parse_place(note: object) -> tuple[str, int] | None:
    """Parse a name and a number of bytes in a note; return None if it is anything else."""
    match note:
        case [str(name), int(value)] if not isinstance(value, bool) and 0 <= value <= MAX_BYTES:
            return name, value
    return None
