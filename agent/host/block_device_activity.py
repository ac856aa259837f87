"""I/O requests and state of block devices, from sysfs. Every user may read these files, even while the device hangs."""

from dataclasses import dataclass
from pathlib import Path

_SYS = Path("/sys")
_STAT_COMPLETED = (0, 4, 11, 15)  # reads, writes, discards (Linux 4.18) and flushes (Linux 5.5) that have ended
_STAT_IN_FLIGHT = 8

HANGING_STATES = frozenset({"blocked", "created-block", "quiesce", "resetting", "connecting"})
"""States of a SCSI device or an NVMe controller in which requests wait."""

FAILED_STATES = frozenset({"offline", "transport-offline", "deleted", "deleting", "deleting (no IO)", "dead"})
"""States in which requests fail at once."""


@dataclass(frozen=True, slots=True)
class BlockDeviceActivity:
    """I/O requests and state of a block device at one instant.

    Attributes:
        in_flight: number of requests that wait for the device.
        completed: number of requests that the device has completed since the kernel added the device.
        state: state of the SCSI device or the NVMe controller, such as `running` or `live`; empty for other devices.
        suspended: whether the device mapper has suspended the device.
    """

    in_flight: int = 0
    completed: int = 0
    state: str = ""
    suspended: bool = False

    @property
    def may_hang(self) -> bool:
        """True if the device may hang. Only a second reading shows whether the device hangs."""
        return self.suspended or self.state in HANGING_STATES or self.in_flight > 0


def read_block_device_activity(number: str, sys: Path = _SYS) -> BlockDeviceActivity | None:
    """Return the activity of a block device; None if the agent cannot see the device.

    Args:
        number: `major:minor` of the device.
        sys: the /sys directory.
    """
    device = sys / "dev/block" / number
    try:
        fields = [int(field) for field in (device / "stat").read_text().split()]
        in_flight, completed = fields[_STAT_IN_FLIGHT], sum(fields[i] for i in _STAT_COMPLETED if i < len(fields))
    except (OSError, ValueError, IndexError):
        return None
    # A partition has the state of its disk, which is in the parent directory.
    states = (_read_word(device / name) for name in ("device/state", "../device/state"))
    suspended = _read_word(device / "dm/suspended") == "1"
    return BlockDeviceActivity(in_flight, completed, next(filter(None, states), ""), suspended)


def describe_block_device_failure(activity: BlockDeviceActivity) -> str:
    """Return a text that says why all requests of a device fail; empty if the device accepts requests."""
    return f"the device is {activity.state}, and its requests fail" if activity.state in FAILED_STATES else ""


def describe_block_device_stall(before: BlockDeviceActivity, after: BlockDeviceActivity, seconds: float) -> str:
    """Return a text that says why a device does not answer; empty if the device completes requests or has none.

    Args:
        before: the activity at one time.
        after: the activity some seconds later.
        seconds: the time between `before` and `after` in seconds. The time has to be longer than the device takes for a request.
    """
    if before.suspended and after.suspended:
        return f"the device mapper has suspended the device for {seconds:g} s"
    if after.state in HANGING_STATES and before.state == after.state:
        return f"the device is {after.state} for {seconds:g} s"
    if before.in_flight > 0 and after.in_flight > 0 and before.completed == after.completed:
        return f"{after.in_flight} requests wait, and the device has completed none for {seconds:g} s"
    return ""


def _read_word(path: Path) -> str:
    try:
        return path.read_text().strip()
    except (OSError, UnicodeDecodeError):
        return ""
