"""Detects an agent that no longer makes progress, for /healthz and the systemd watchdog."""

import time
from dataclasses import dataclass, field


@dataclass(slots=True)
class Progress:
    """The latest progress, in seconds of the monotonic clock.

    Attributes:
        ticked_at: when the alert loop last completed.
        polled_at: when a collector last ran, successfully or not.
    """

    ticked_at: float = field(default_factory=time.monotonic)
    polled_at: float = field(default_factory=time.monotonic)

    def on_tick(self) -> None:
        """Note that the alert loop completed."""
        self.ticked_at = time.monotonic()

    def on_poll(self) -> None:
        """Note that a collector ran."""
        self.polled_at = time.monotonic()

    def hang_reason(self, *, up: int, patience: float) -> str:
        """Return what no longer makes progress; empty if everything does.

        Args:
            up: the number of VMs that can be polled.
            patience: seconds within which at least one of them must be polled.
        """
        now = time.monotonic()
        if up == 0:
            self.polled_at = now
        if now - self.ticked_at > patience:
            return f"the alert loop has not run for {now - self.ticked_at:.0f} s"
        if now - self.polled_at > patience:
            return f"{up} VMs are up, and none was polled for {now - self.polled_at:.0f} s"
        return ""
