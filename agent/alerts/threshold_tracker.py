"""Levels and write threshold of one disk: which levels are exceeded, and which threshold the agent should set in QEMU. Pure.

After each command that sets a threshold, the agent compares the levels again. A write may have passed the threshold before QEMU executed
the command, and QEMU sends no event for that write.

The tracker stores exceeded levels by their text. Positions in the list of levels would change with the disk's size and with the config.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from agent.alerts.disk_levels import MAX_SIZE_BYTES, DiskAlertLevel, LevelAsUsedBytes, levels_as_used_bytes
from agent.alerts.disk_threshold_types import (
    DetectedBy,
    DiskLayer,
    DiskLevelCrossing,
    DiskThresholdPolicy,
    LevelResolvedReason,
    LimitedBy,
    ThresholdMode,
)
from agent.alerts.disk_usage import DiskUsage
from agent.alerts.pool_usage import PoolUsage
from agent.alerts.write_threshold_slot import NodeThreshold, WriteThresholdSlot, WriteThresholdSlotState

LAYER_REFRESH_SHARE = 0.01
"""The layers of a file are polled again after the file has grown by this share of its limit."""
MAX_EXCEEDED_LEVELS = 1000
"""Maximum number of exceeded levels that are restored after a restart of the agent."""


@dataclass(slots=True)
class ThresholdTracker:
    """Levels and write threshold of one disk.

    Attributes:
        policy: The config's policy for the disk.
        usage: The disk's usage.
        slot: The slot in QEMU that holds the write threshold of the disk's storage node.
        shown_limit: The limit in the last `block_space` sample, in bytes.
    """

    policy: DiskThresholdPolicy
    usage: DiskUsage = field(default_factory=DiskUsage)
    slot: WriteThresholdSlot = field(default_factory=WriteThresholdSlot)
    shown_limit: int = 0
    _exceeded: frozenset[str] = frozenset()
    # The inputs and the cached result of `applicable_levels`. Inputs: the limit, the config's levels, and whether all levels apply.
    _cached_levels: tuple[tuple[int, tuple[DiskAlertLevel, ...], bool], tuple[LevelAsUsedBytes, ...]] = (
        (0, (), False),
        (),
    )
    _last_poll_inputs: object = (
        None  # inputs of the last poll; None if that poll crossed a level or requires a poll of the layers
    )

    @property
    def applicable_levels(self) -> tuple[LevelAsUsedBytes, ...]:
        """The levels that apply to this disk, the lowest first; empty if the policy is off or the disk cannot run out of space.

        Levels in percent and in free bytes are left out in two cases. If only the virtual size limits a file, the file stops growing at
        that size and no write fails. If a pool has its own levels, one pool alert covers all disks on that pool.
        """
        if self.policy.mode is ThresholdMode.OFF or not self.usage.can_run_out_of_space:
            return ()
        key = self.usage.limit, self.policy.levels, self._is_limit_watched
        if self._cached_levels[0] != key:
            limit, levels, is_watched = key
            applying = [level for level in levels if is_watched or level.used is not None]
            self._cached_levels = key, levels_as_used_bytes(applying, limit)
        return self._cached_levels[1]

    @property
    def _is_limit_watched(self) -> bool:
        """True if levels in percent or in free bytes apply: the limit is neither the virtual size nor a pool with its own levels."""
        usage = self.usage
        if isinstance(usage.pool, PoolUsage) and usage.limited_by is LimitedBy.POOL:
            return not usage.pool.has_levels
        return usage.limited_by is not LimitedBy.VIRTUAL_SIZE

    @property
    def exceeded_level_count(self) -> int:
        """Number of exceeded levels."""
        return len(self._exceeded)

    # Polls and events.

    def is_unchanged_since_last_poll(self, storage_node: str, offset: int, pool: object) -> bool:
        """Return whether `on_poll` has nothing to do: the disk and its limit are the same as at the last poll.

        Args:
            storage_node: The storage node.
            offset: The highest write offset in the storage, in bytes.
            pool: The pool of the image, as in `DiskUsage.pool`.
        """
        return (
            self._last_poll_inputs is not None
            and self._last_poll_inputs == self._inputs_of_poll(storage_node, offset, pool)
            and self.usage.limit == self.shown_limit
        )

    def _inputs_of_poll(self, storage_node: str, offset: int, pool: object) -> object:
        """Return the inputs of `on_poll`, except for the state that only a poll of the layers or an event changes."""
        if isinstance(pool, PoolUsage):
            return storage_node, offset, self.policy, pool, pool.reading, pool.read_at, pool.error, pool.has_levels
        return storage_node, offset, self.policy, pool

    def on_poll(self, storage_node: str, offset: int, now: float) -> bool:
        """Handle a poll of the highest write offset.

        Args:
            storage_node: The storage node.
            offset: The highest write offset in the storage, in bytes.
            now: The current time in seconds.

        Returns:
            True if the agent has to poll the layers before it compares the levels.
        """
        usage, self._last_poll_inputs = self.usage, None
        if storage_node != usage.storage.node or self.slot.needs_read:
            return True  # a snapshot or a completed mirror changed the storage
        usage.on_highest_write_offset(offset, now)
        if usage.used_bytes_measure == "offset" or usage.is_raw_on_thin_volume:
            return usage.is_usage_known and any(self._level_changes())
        written = usage.written_since_layer_poll
        if any(self._level_changes()):  # the limit has changed
            return True
        level = self._next_level() if written > 0 else None
        is_near_level = level is not None and usage.used_bytes + written > level.bytes
        if is_near_level or written > max(usage.limit * LAYER_REFRESH_SHARE, 1):
            return True
        self._last_poll_inputs = self._inputs_of_poll(storage_node, offset, usage.pool)
        return False

    def on_layers(
        self, image_format: DiskLayer, storage: DiskLayer, offset: int, now: float
    ) -> Iterator[DiskLevelCrossing]:
        """Handle a poll of the layers; yield the levels that were crossed since the last comparison.

        Args:
            image_format: The format layer.
            storage: The storage layer.
            offset: The highest known write offset in the storage, in bytes.
            now: The current time in seconds.
        """
        self._last_poll_inputs = None
        is_replaced = self.usage.on_layers(image_format, storage, offset, now, had_alert=bool(self._exceeded))
        threshold = storage.write_threshold
        has_fired = threshold is not None and self.slot.on_read(
            storage.node, threshold, is_level=self._is_own_level(threshold)
        )
        yield from self._compare_levels(DetectedBy.MISSED if has_fired else DetectedBy.LEVEL, is_replaced=is_replaced)

    def _is_own_level(self, threshold: int) -> bool:
        return self.policy.mode is ThresholdMode.ARM and any(
            threshold == level.bytes for level in self.applicable_levels
        )

    def on_event(self, node: str, threshold: int, exceeded_by: int) -> Iterator[DiskLevelCrossing]:
        """Handle the event of the agent's own threshold; yield the levels that the write crossed.

        Args:
            node: The node of the threshold.
            threshold: The threshold in bytes.
            exceeded_by: By how many bytes the end of the write exceeds the threshold.
        """
        if not self.slot.was_set_by_agent(node, threshold) or not self.usage.is_polled:
            return
        self._last_poll_inputs = None
        self.slot.on_fired(node, threshold)
        if node == self.usage.storage.node:
            self.usage.on_threshold_exceeded(threshold + exceeded_by)
            yield from self._compare_levels(DetectedBy.EVENT)

    def _level_changes(self) -> Iterator[tuple[LevelAsUsedBytes, bool]]:
        """Yield each newly exceeded level with True, the lowest first. Then yield each level that is no longer exceeded with False."""
        usage = self.usage
        if not usage.is_limit_known or not usage.limit:
            return
        if not usage.is_usage_known and (usage.used_bytes_measure == "allocated" or not usage.is_raw):
            return  # the usage is unknown
        levels = self.applicable_levels
        if not levels and not self._exceeded:
            return
        used, slack = usage.used_bytes, int(usage.limit * self.policy.hysteresis)
        for level in levels:
            if used > level.bytes and level.text not in self._exceeded:
                yield level, True
        for level in reversed(levels):
            if used <= level.bytes - slack and level.text in self._exceeded:
                yield level, False
        for text in sorted(self._exceeded - {level.text for level in levels}):
            yield LevelAsUsedBytes(text, 0), False

    def _compare_levels(self, detected_by: DetectedBy, *, is_replaced: bool = False) -> Iterator[DiskLevelCrossing]:
        """Compare the usage with the levels; store and yield the levels that were crossed since the last comparison."""
        usage, levels = self.usage, self.applicable_levels
        changes = list(self._level_changes())
        if is_replaced and not usage.is_usage_known:  # it is unknown whether the new image exceeds these levels
            changes = [(LevelAsUsedBytes(text, 0), False) for text in sorted(self._exceeded)]
        for level, firing in changes:
            self._exceeded = self._exceeded | {level.text} if firing else self._exceeded - {level.text}
            yield DiskLevelCrossing(
                level,
                usage.used_bytes,
                usage.limit,
                detected_by if firing else DetectedBy.LEVEL,
                firing,
                is_highest_of_several_levels=len(levels) > 1 and level == levels[-1],
                resolved_by=_resolved_reason(is_level=level in levels, is_replaced=is_replaced),
            )

    # Commands.

    def _next_level(self) -> LevelAsUsedBytes | None:
        """Return the lowest level that is not exceeded."""
        return next((level for level in self.applicable_levels if level.text not in self._exceeded), None)

    def next_threshold(self) -> NodeThreshold | None:
        """Return the threshold to set now; None if no level needs a threshold, or if the agent must not set a threshold now."""
        if (
            self.policy.mode is not ThresholdMode.ARM
            or self.slot.state is not WriteThresholdSlotState.EMPTY
            or self.usage.is_raw
        ):
            return None
        usage, level = self.usage, self._next_level()
        bytes_to_levels = [level.bytes - usage.used_bytes] if level is not None else []
        if (until_pool_level := self._bytes_until_pool_level()) is not None:
            bytes_to_levels.append(until_pool_level)
        if not bytes_to_levels:
            return None
        # A file grows at its end, so its unallocated bytes are beyond its current end.
        write_position = (
            max(usage.offset, usage.storage.size) if usage.used_bytes_measure == "allocated" else usage.offset
        )
        value = write_position + min(bytes_to_levels)
        return (usage.storage.node, value) if write_position <= value <= MAX_SIZE_BYTES else None

    def _bytes_until_pool_level(self) -> int | None:
        """Return how many bytes this disk has to write until its pool exceeds the next level.

        Return None if the disk has no pool with levels, or if the disk cannot grow by that number of bytes.

        The agent can set a write threshold at the offset that these writes reach. QEMU reports a write beyond the threshold at once, and
        the agent then reads the pool. If other disks also write, the pool may exceed the level before this disk reaches the threshold.
        Then the agent detects the exceeded level at its next read of the pool.
        """
        usage = self.usage
        if (
            not usage.can_run_out_of_space
            or not isinstance(usage.pool, PoolUsage)
            or usage.pool.bytes_until_level is None
        ):
            return None
        bytes_until_level = usage.pool.bytes_until_level
        return (
            bytes_until_level
            if usage.pool.has_levels and usage.used_bytes + bytes_until_level < usage.max_usage
            else None
        )

    def mark_next_threshold_as_set(self) -> NodeThreshold | None:
        """Return the threshold to set now, like `next_threshold`. The threshold counts as set from now on."""
        threshold = self.next_threshold()
        if threshold is not None:
            self.slot.on_command_send(*threshold)
        return threshold

    def on_command_done(self, *, done: bool) -> None:
        """Handle the outcome of the command that set the threshold; `done` is whether QEMU confirmed the command."""
        self._last_poll_inputs = None
        self.slot.on_command_done(self.usage.storage.node, done=done)

    # Persistence.

    @property
    def has_state(self) -> bool:
        """True if there is state to store for the next run of the agent."""
        return bool(self._exceeded) or self.slot.threshold is not None

    def state_to_store(self) -> dict[str, Any]:
        """Return the state to store for the next run of the agent, as JSON values."""
        return {
            "exceeded": sorted(self._exceeded),
            **self.slot.state_to_store(),
            "highest_write": self.usage.state_to_store(),
        }

    def restore(self, stored: object) -> None:
        """Restore what `state_to_store` returned in an earlier run. Ignore invalid values."""
        if not isinstance(stored, dict):
            return
        exceeded = stored.get("exceeded")
        if isinstance(exceeded, list):
            self._exceeded = frozenset(text for text in exceeded[:MAX_EXCEEDED_LEVELS] if isinstance(text, str))
        self.slot.restore(stored)
        self.usage.restore(stored.get("highest_write"))


def _resolved_reason(*, is_level: bool, is_replaced: bool) -> LevelResolvedReason:
    if is_replaced:
        return LevelResolvedReason.REPLACED
    return LevelResolvedReason.SPACE if is_level else LevelResolvedReason.LEVEL_GONE
