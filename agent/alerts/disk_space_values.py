"""Fields of a disk's usage, for alert records and for `block_space` samples. Pure."""

from typing import Any

from agent.alerts.disk_threshold_types import ThresholdMode
from agent.alerts.disk_usage import DiskUsage
from agent.alerts.pool_usage import PoolUsage
from agent.alerts.threshold_tracker import ThresholdTracker
from agent.model.family import Sample
from agent.model.metrics.block import BLOCK_SPACE


def disk_space_values(usage: DiskUsage) -> dict[str, Any]:
    """Return a disk's storage node, path and limit, and its usage and growth if they are known."""
    figures: dict[str, Any] = {
        "node": usage.storage.node,
        "path": usage.storage.path,
        "measure": usage.used_bytes_measure,
    }
    if isinstance(usage.pool, PoolUsage):
        figures["pool"] = usage.pool.name
    if usage.is_limit_known and usage.limit:
        figures |= {"limited_by": usage.limited_by.value, "limit_bytes": usage.limit}
    if usage.is_usage_known:
        figures["used_bytes"] = usage.used_bytes
    if usage.is_usage_known and "limit_bytes" in figures:
        figures["free_bytes"] = usage.free
    if usage.growth.rate is not None:
        figures["growth_bytes_per_second"] = round(usage.growth.rate, 1)
    if usage.time_to_full is not None:
        figures["time_to_full_seconds"] = round(usage.time_to_full, 1)
    return figures


def space_sample(device: str, tracker: ThresholdTracker) -> Sample | None:
    """Return a disk's usage as a `block_space` sample; None if the disk cannot run out of space or the policy is off."""
    tracker.shown_limit = tracker.usage.limit
    if not tracker.usage.can_run_out_of_space or tracker.policy.mode is ThresholdMode.OFF:
        return None
    values = {key: value for key, value in disk_space_values(tracker.usage).items() if key not in ("node", "path")}
    values |= {"exceeded_levels": tracker.exceeded_level_count, "threshold_foreign": tracker.slot.is_foreign}
    if tracker.slot.threshold is not None:
        values["armed_threshold_bytes"] = tracker.slot.threshold[1]
    return Sample(BLOCK_SPACE, (device,), values)
