"""The latency histograms of one disk in QEMU, as a state machine. Pure.

QEMU has one set of histograms for each disk, and any client can replace or remove this set. The agent sets histograms only on a disk that
has none. The agent never replaces or removes histograms, including its own. So the agent's histograms stay until the disk is unplugged or
QEMU ends.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from types import MappingProxyType

MAX_REFUSALS = 3
"""Number of consecutive failed commands after which the agent no longer sets the histograms of a disk."""

BoundariesNs = tuple[int, ...]
"""The boundaries between the bins of a histogram, in nanoseconds, ascending."""


class HistogramState(StrEnum):
    """State of a disk's histograms, as far as the agent knows."""

    UNREAD = "unread"
    """The agent has not polled the disk since the agent attached to the VM, or since the disk was plugged in."""
    NONE = "none"
    """The disk has no histograms, so the agent may set them."""
    OURS = "agent"
    """The disk has the agent's histograms, or the agent has sent the command that sets them."""
    FOREIGN = "other"
    """Another client has set the histograms."""
    UNKNOWN = "unknown"
    """The command that sets the histograms failed or got no response. QEMU may have executed the command."""
    REFUSED = "refused"
    """The disk has no histograms, and QEMU refused the agent's commands."""
    REMOVED = "removed"
    """Another client has removed the histograms. The agent sets no histograms on the disk until the disk is plugged in again."""


class HistogramStateInput(StrEnum):
    """An input of the state machine of a disk's histograms."""

    READ_NONE = "read_none"
    """A poll shows no histograms."""
    READ_OURS = "read_ours"
    """A poll shows the histograms that the agent set."""
    READ_FOREIGN = "read_foreign"
    """A poll shows histograms that the agent did not set."""
    SEND = "send"
    """The agent is about to send the command that sets the histograms."""
    FAIL = "fail"
    """QEMU refused the command, or the response did not arrive."""
    REFUSE = "refuse"
    """The command has failed `MAX_REFUSALS` consecutive times."""
    REPLUG = "replug"
    """Another disk has replaced the disk of the last poll."""


_STATE, _INPUT = HistogramState, HistogramStateInput
_ALWAYS = {_INPUT.READ_FOREIGN: _STATE.FOREIGN, _INPUT.REPLUG: _STATE.UNREAD}
_UNCERTAIN = {**_ALWAYS, _INPUT.READ_NONE: _STATE.NONE, _INPUT.READ_OURS: _STATE.OURS}

HISTOGRAM_TRANSITIONS: Mapping[HistogramState, Mapping[HistogramStateInput, HistogramState]] = MappingProxyType(
    {
        _STATE.UNREAD: _UNCERTAIN,
        _STATE.NONE: {**_ALWAYS, _INPUT.SEND: _STATE.OURS},
        _STATE.OURS: {
            **_ALWAYS,
            _INPUT.READ_NONE: _STATE.REMOVED,
            _INPUT.FAIL: _STATE.UNKNOWN,
            _INPUT.REFUSE: _STATE.REFUSED,
        },
        _STATE.FOREIGN: {**_ALWAYS, _INPUT.READ_NONE: _STATE.REMOVED},
        _STATE.UNKNOWN: _UNCERTAIN,
        _STATE.REFUSED: {**_ALWAYS, _INPUT.READ_OURS: _STATE.OURS},
        _STATE.REMOVED: {
            **_ALWAYS,
            _INPUT.READ_OURS: _STATE.FOREIGN,
        },  # another client has set the same bins as the agent would
    }
)
"""The next state, by current state and input. An input that is not listed changes nothing."""


@dataclass(slots=True)
class DiskHistogramStateMachine:
    """The latency histograms of one disk.

    Attributes:
        state: the state of the histograms.
        own_boundaries: the boundaries that the agent set; None if the agent set none on this disk.
        device: name of the disk's device in QEMU's commands; empty if the device has no name.
        operations: total numbers of operations of each kind at the last poll. A lower number shows that the disk was replaced.
        refusals: number of consecutive failed commands.
        is_unplugged: whether QEMU has reported that the disk was unplugged. After the report, a poll can still show the unplugged disk.
    """

    state: HistogramState = HistogramState.UNREAD
    own_boundaries: BoundariesNs | None = None
    device: str = ""
    operations: tuple[int, ...] = ()
    refusals: int = 0
    is_unplugged: bool = False

    def on_poll(self, boundaries: Sequence[float] | None, operations: tuple[int, ...], device: str) -> None:
        """Update the state from a poll of the disk.

        Args:
            boundaries: the boundaries of the disk's histograms in seconds; None if the disk has no histograms.
            operations: total numbers of operations of each kind.
            device: name of the disk's device in QEMU; empty if the device has no name.
        """
        has_fewer = any(now < before for now, before in zip(operations, self.operations, strict=False))
        is_other_device = bool(self.device) and device != self.device
        if has_fewer or is_other_device or (self.is_unplugged and boundaries is None):
            self._forget_disk()
        self.operations, self.device = operations, device
        if boundaries is None:
            self.is_unplugged = False
            self._change_state(HistogramStateInput.READ_NONE)
        elif self.own_boundaries is not None and list(boundaries) == [
            bound / 1_000_000_000 for bound in self.own_boundaries
        ]:
            self._change_state(HistogramStateInput.READ_OURS)
        else:
            self._change_state(HistogramStateInput.READ_FOREIGN)

    def _forget_disk(self) -> None:
        self._change_state(HistogramStateInput.REPLUG)
        self.own_boundaries, self.operations, self.device, self.refusals = None, (), "", 0

    @property
    def may_set(self) -> bool:
        """True if the agent may set histograms now."""
        return self.state is HistogramState.NONE and bool(self.device)

    def on_command_send(self, boundaries: BoundariesNs) -> None:
        """Store the histogram boundaries that a command sets. Call this method before the agent sends the command."""
        self._change_state(HistogramStateInput.SEND)
        self.own_boundaries = boundaries

    def on_command_done(self, *, done: bool) -> None:
        """Handle the outcome of the command. `done` is whether QEMU confirmed the command."""
        self.refusals = 0 if done else self.refusals + 1
        if not done:
            self._change_state(
                HistogramStateInput.REFUSE if self.refusals >= MAX_REFUSALS else HistogramStateInput.FAIL
            )

    def _change_state(self, histogram_input: HistogramStateInput) -> None:
        self.state = HISTOGRAM_TRANSITIONS[self.state].get(histogram_input, self.state)
