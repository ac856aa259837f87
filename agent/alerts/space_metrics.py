"""How full a disk is, in the figures that alerts and series give. Pure."""

from typing import Any

from agent.alerts.threshold_tracker import ThresholdTracker
from agent.alerts.threshold_types import ThresholdMode
from agent.model.family import Sample
from agent.model.metrics.block import BLOCK_SPACE


def figures(guard: ThresholdTracker) -> dict[str, Any]:
    """Return what people want to know of a disk that fills."""
    found: dict[str, Any] = {"node": guard.storage.node, "path": guard.storage.path, "measure": guard.measure}
    found |= {"used_bytes": guard.used, "limit_bytes": guard.limit, "free_bytes": guard.limit - guard.used}
    if guard.growth is not None:
        found["growth_bytes_per_second"] = round(guard.growth, 1)
    if guard.full_in is not None:
        found["time_to_full_seconds"] = round(guard.full_in, 1)
    return found


def space(device: str, guard: ThresholdTracker) -> Sample | None:
    """Return a disk's fullness as a sample, or None where it cannot fill."""
    if not guard.thin or guard.plan.mode is ThresholdMode.OFF:
        return None
    values = {key: value for key, value in figures(guard).items() if key not in ("node", "path")}
    values |= {"exceeded_levels": guard.told, "threshold_foreign": guard.foreign}
    if guard.armed is not None:
        values["armed_threshold_bytes"] = guard.armed[1]
    return Sample(BLOCK_SPACE, (device,), values)
