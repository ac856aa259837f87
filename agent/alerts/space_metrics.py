"""How full a disk is, as figures for alerts and for series. Pure."""

from typing import Any

from agent.alerts.threshold_tracker import ThresholdTracker
from agent.alerts.threshold_types import ThresholdMode
from agent.model.family import Sample
from agent.model.metrics.block import BLOCK_SPACE


def space_figures(tracker: ThresholdTracker) -> dict[str, Any]:
    """Return a disk's node, path and usage, and its growth if it is known."""
    figures: dict[str, Any] = {"node": tracker.storage.node, "path": tracker.storage.path, "measure": tracker.measure}
    figures["limit_bytes"] = tracker.limit
    if tracker.is_measured:
        figures |= {"used_bytes": tracker.used, "free_bytes": tracker.limit - tracker.used}
    if tracker.growth_rate is not None:
        figures["growth_bytes_per_second"] = round(tracker.growth_rate, 1)
    if tracker.time_to_full is not None:
        figures["time_to_full_seconds"] = round(tracker.time_to_full, 1)
    return figures


def space_sample(device: str, tracker: ThresholdTracker) -> Sample | None:
    """Return a disk's usage as a sample, or None if the disk cannot run out of space or the policy is off."""
    if not tracker.thin or tracker.policy.mode is ThresholdMode.OFF:
        return None
    values = {key: value for key, value in space_figures(tracker).items() if key not in ("node", "path")}
    values |= {"exceeded_levels": tracker.exceeded_levels, "threshold_foreign": tracker.slot.is_foreign}
    if tracker.slot.threshold is not None:
        values["armed_threshold_bytes"] = tracker.slot.threshold[1]
    return Sample(BLOCK_SPACE, (device,), values)
