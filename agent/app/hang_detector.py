"""Detects that the agent makes no progress, for /healthz and systemd's watchdog."""

import time
from dataclasses import dataclass, field


@dataclass(slots=True)
class HangDetector:
    """The times of the latest progress, in seconds of the monotonic clock.

    Attributes:
        alert_loop_ran_at: when the alert loop last completed an iteration.
        collector_ran_at: when a collector last ran, successfully or not.
    """

    alert_loop_ran_at: float = field(default_factory=time.monotonic)
    collector_ran_at: float = field(default_factory=time.monotonic)

    def on_alert_loop_iteration(self) -> None:
        """Store the current time as the end of the alert loop's last iteration."""
        self.alert_loop_ran_at = time.monotonic()

    def on_collector_run(self) -> None:
        """Store the current time as the time of the last collector run."""
        self.collector_ran_at = time.monotonic()

    def hang_reason(self, *, vms_up: int, hang_seconds: float) -> str:
        """Return why the alert loop or the polls make no progress; empty if both make progress.

        Args:
            vms_up: number of VMs that can be polled. If the number is 0, a lack of polls is no hang.
            hang_seconds: maximum time without an iteration of the alert loop, and without a poll of any VM.
        """
        now = time.monotonic()
        if vms_up == 0:
            self.collector_ran_at = now
        if now - self.alert_loop_ran_at > hang_seconds:
            return f"the alert loop has not run for {now - self.alert_loop_ran_at:.0f} s"
        if now - self.collector_ran_at > hang_seconds:
            return f"{vms_up} VMs are up, and none was polled for {now - self.collector_ran_at:.0f} s"
        return ""
