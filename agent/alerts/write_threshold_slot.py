"""State machine of the write-threshold slot of one block node in QEMU. Pure.

QEMU has one slot for each block node. The slot holds one write threshold, and any client can overwrite it. QEMU empties the slot when the
threshold fires. A threshold below the highest write offset fires only at the next write.

The agent reads the slot first, and never replaces another client's threshold. The agent stores its own threshold in the journal before it
sends the command. If the slot is empty later, the threshold has fired, or another client has cleared the slot.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from types import MappingProxyType
from typing import Any

from agent.alerts.disk_threshold_types import parse_stored_name_and_bytes

MAX_OWN_THRESHOLDS = 16
"""Maximum number of the agent's newest thresholds to store.

The agent needs these thresholds to recognize a late event. An event can arrive after a read of the empty slot, or after a snapshot has
changed the storage node.
"""
MAX_REFUSALS = 3
"""Number of consecutive failed commands after which the agent no longer sets a node's threshold."""

NodeThreshold = tuple[str, int]
"""A block node and the write threshold in its slot, in bytes."""


class WriteThresholdSlotState(StrEnum):
    """State of a write-threshold slot, as the agent knows it from reads, commands and events."""

    UNREAD = "unread"
    """The agent has not read the slot since it attached. The slot may hold a threshold of an earlier run."""
    EMPTY = "empty"
    """The slot is empty, so the agent may set it."""
    OURS = "ours"
    """The slot holds the agent's value, or the agent has sent the command that sets it."""
    FOREIGN = "foreign"
    """The slot held another client's value at some time. The agent never sets this slot again."""
    UNKNOWN = "unknown"
    """A command failed or got no response, so QEMU may have executed it. The agent has to read the slot."""
    REFUSED = "refused"
    """The slot is empty, and QEMU refused the agent's commands. The agent sets no threshold until the storage node changes."""


class WriteThresholdSlotInput(StrEnum):
    """An input of the state machine: a read of the slot, a command or an event."""

    READ_EMPTY = "read_empty"
    READ_OURS = "read_ours"
    READ_FOREIGN = "read_foreign"
    READ_REFUSED = "read_refused"
    """The slot is empty, and `MAX_REFUSALS` consecutive commands for this node have failed."""
    SEND = "send"
    """The agent is about to send the command that sets the slot."""
    FAIL = "fail"
    """QEMU refused the command, or its response did not arrive."""
    FIRE = "fire"
    """QEMU reported a write beyond the agent's threshold, and emptied the slot."""


_READS = {
    WriteThresholdSlotInput.READ_EMPTY: WriteThresholdSlotState.EMPTY,
    WriteThresholdSlotInput.READ_OURS: WriteThresholdSlotState.OURS,
    WriteThresholdSlotInput.READ_FOREIGN: WriteThresholdSlotState.FOREIGN,
    WriteThresholdSlotInput.READ_REFUSED: WriteThresholdSlotState.REFUSED,
}

WRITE_THRESHOLD_TRANSITIONS: Mapping[
    WriteThresholdSlotState, Mapping[WriteThresholdSlotInput, WriteThresholdSlotState]
] = MappingProxyType(
    {
        WriteThresholdSlotState.UNREAD: _READS | {WriteThresholdSlotInput.FAIL: WriteThresholdSlotState.UNKNOWN},
        WriteThresholdSlotState.EMPTY: _READS
        | {
            WriteThresholdSlotInput.SEND: WriteThresholdSlotState.OURS,
            WriteThresholdSlotInput.FAIL: WriteThresholdSlotState.UNKNOWN,
        },
        WriteThresholdSlotState.OURS: _READS
        | {
            WriteThresholdSlotInput.FIRE: WriteThresholdSlotState.EMPTY,
            WriteThresholdSlotInput.FAIL: WriteThresholdSlotState.UNKNOWN,
        },
        WriteThresholdSlotState.FOREIGN: {},
        WriteThresholdSlotState.UNKNOWN: _READS,
        WriteThresholdSlotState.REFUSED: _READS,
    }
)
"""The next state by state and input. An input that is not listed changes nothing."""


@dataclass(slots=True)
class WriteThresholdSlot:
    """The write-threshold slot of a disk's storage node, as the agent knows it from reads, commands and events.

    Attributes:
        state: The state of the slot.
        threshold: The agent's own threshold in the slot. In UNREAD and UNKNOWN, the slot may not hold this threshold.
    """

    state: WriteThresholdSlotState = WriteThresholdSlotState.UNREAD
    threshold: NodeThreshold | None = None
    # The thresholds that the agent has set, the newest last.
    _own_thresholds: list[NodeThreshold] = field(default_factory=list)
    _refusals: dict[str, int] = field(default_factory=dict)  # consecutive failed commands, by node

    @property
    def is_foreign(self) -> bool:
        """True if another client uses the slot."""
        return self.state is WriteThresholdSlotState.FOREIGN

    @property
    def needs_read(self) -> bool:
        """True if the outcome of a command is unknown. The agent then has to read the slot before anything else."""
        return self.state is WriteThresholdSlotState.UNKNOWN

    def was_set_by_agent(self, node: str, value: int) -> bool:
        """Return whether the agent set this threshold, even on a node that is no longer the disk's storage."""
        return self.threshold == (node, value) or (node, value) in self._own_thresholds

    def on_read(self, node: str, value: int, *, is_level: bool) -> bool:
        """Handle a poll of the slot.

        Args:
            node: The storage node.
            value: The threshold in the node's slot, in bytes; 0 if the slot is empty.
            is_level: Whether the value is one of the agent's own levels. A level counts as set by the agent, because an earlier run may
                have set the level without storing it in the journal.

        Returns:
            True if the agent's threshold has fired or was cleared since the last read.
        """
        before, was_unknown = self.threshold, self.needs_read
        self._change_state(self._classify_read(node, value, is_level=is_level))
        self.threshold = (node, value) if self.state is WriteThresholdSlotState.OURS else None
        return before is not None and before[0] == node and before != self.threshold and not was_unknown

    def _classify_read(self, node: str, value: int, *, is_level: bool) -> WriteThresholdSlotInput:
        if not value:
            refused = self._refusals.get(node, 0) >= MAX_REFUSALS
            return WriteThresholdSlotInput.READ_REFUSED if refused else WriteThresholdSlotInput.READ_EMPTY
        return (
            WriteThresholdSlotInput.READ_OURS
            if is_level or self.was_set_by_agent(node, value)
            else WriteThresholdSlotInput.READ_FOREIGN
        )

    def on_command_send(self, node: str, value: int) -> None:
        """Store a threshold whose command is about to be sent, and count the threshold as set from now on."""
        self._change_state(WriteThresholdSlotInput.SEND)
        self.threshold = (node, value)
        earlier = [own for own in self._own_thresholds if own != self.threshold]
        self._own_thresholds = [*earlier, self.threshold][-MAX_OWN_THRESHOLDS:]

    def on_command_done(self, node: str, *, done: bool) -> None:
        """Handle the outcome of the command that set the threshold; `done` is whether QEMU confirmed the command."""
        if done:
            self._refusals.pop(node, None)
        else:
            self._refusals[node] = self._refusals.get(node, 0) + 1
            self._change_state(WriteThresholdSlotInput.FAIL)

    def on_fired(self, node: str, value: int) -> None:
        """Handle the event of the agent's own threshold. In state UNREAD, do nothing: the next `on_read` then returns True."""
        if self.threshold == (node, value) and self.state is not WriteThresholdSlotState.UNREAD:
            self.threshold = None
            self._change_state(WriteThresholdSlotInput.FIRE)

    def _change_state(self, slot_input: WriteThresholdSlotInput) -> None:
        self.state = WRITE_THRESHOLD_TRANSITIONS[self.state].get(slot_input, self.state)

    def state_to_store(self) -> dict[str, Any]:
        """Return the state to store for the next run of the agent, as JSON values."""
        return {
            "threshold": list(self.threshold) if self.threshold is not None else None,
            "own_thresholds": [list(own) for own in self._own_thresholds],
        }

    def restore(self, stored: Mapping[str, Any]) -> None:
        """Restore what `state_to_store` returned in an earlier run. Ignore invalid values."""
        own = stored.get("own_thresholds")
        parsed = map(parse_stored_name_and_bytes, own if isinstance(own, list) else ())
        self.threshold = parse_stored_name_and_bytes(stored.get("threshold"))
        self._own_thresholds = [threshold for threshold in parsed if threshold is not None][-MAX_OWN_THRESHOLDS:]
