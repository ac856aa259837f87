"""Run state of one guest, from events and polls in any order. Pure.

Events and polls arrive out of order: libvirt passes events over another connection, and QEMU delays some events. So an event or a poll
changes the run state only if no newer event or poll has arrived before.
"""

from dataclasses import dataclass

CLOCK_STEP_NS = 1_000_000_000
"""Maximum time by which a poll may be older than the previous poll, in nanoseconds. A longer time shows that the clock was set back."""
STOP_DELAY_NS = 1_000_000_000
"""How long a poll may still report `running` after an error event, in nanoseconds. QEMU emits the event before it stops the guest."""


@dataclass(slots=True)
class RunStateTracker:
    """Run state of the guest in one QEMU process. Times are in nanoseconds since the epoch; 0 if unknown.

    Attributes:
        running: Whether the guest runs; None if unknown.
        status: QEMU's run state at the newest poll; empty without a poll, or if a later event has changed the run state.
        since_ns: When `status` was first polled.
        resumed_ns: Time of the newest RESUME.
        stopped_ns: Time of the newest STOP, or of the newest poll of a stopped guest.
        last_running_poll_ns: Time of the newest poll of a running guest.
        running_since_ns: Earliest time from which the guest is known to have run without a stop.
        has_started: Whether the guest has run or was reset.
        was_incoming: Whether the process has ever waited for an incoming migration.
    """

    running: bool | None = None
    status: str = ""
    since_ns: int = 0
    resumed_ns: int = 0
    stopped_ns: int = 0
    last_running_poll_ns: int = 0
    running_since_ns: int = 0
    has_started: bool = False
    was_incoming: bool = False
    _as_of_ns: int = 0
    _polled_ns: int = 0

    def on_event(self, name: str, time_ns: int) -> None:
        """Handle STOP, RESUME or RESET."""
        self.has_started = True
        if name == "RESET":
            return
        running = name == "RESUME"
        if running:
            self.resumed_ns = max(self.resumed_ns, time_ns)
        else:
            self.stopped_ns = max(self.stopped_ns, time_ns)
        if time_ns >= self._as_of_ns:
            if running is not self.running:
                self.status = ""
            self._set_running(time_ns, running=running)

    def on_poll(self, status: str, time_ns: int, *, running: bool) -> bool:
        """Handle a poll of the run state.

        Args:
            status: QEMU's run state, such as `paused`.
            time_ns: When the query was sent.
            running: Whether the guest runs.

        Returns:
            False if the poll changes nothing, because a newer event is known.
        """
        if time_ns < self._as_of_ns:
            return False
        if running:
            self.last_running_poll_ns, self.has_started = time_ns, True
        else:
            self.stopped_ns = max(self.stopped_ns, time_ns)
        if status != self.status or not self.since_ns:
            self.since_ns = time_ns
        self.was_incoming = self.was_incoming or status == "inmigrate"
        self.status = status
        self._set_running(time_ns, running=running)
        return True

    def _set_running(self, time_ns: int, *, running: bool) -> None:
        if running and not self.running:
            self.running_since_ns = time_ns
        self.running, self._as_of_ns = running, time_ns

    def cap_times_after_clock_setback(self, time_ns: int) -> bool:
        """Return whether a poll at `time_ns` shows that the clock was set back. If so, limit all stored times to `time_ns`."""
        before, self._polled_ns = self._polled_ns, time_ns
        if time_ns >= before - CLOCK_STEP_NS:
            return False
        for name in ("since_ns", "resumed_ns", "stopped_ns", "last_running_poll_ns", "running_since_ns", "_as_of_ns"):
            setattr(self, name, min(getattr(self, name), time_ns))
        return True

    def has_run_since(self, time_ns: int) -> bool:
        """Return whether the guest has certainly run since an event stopped it at `time_ns`."""
        if self.resumed_ns > time_ns:
            return True
        stop_is_known = time_ns <= self.stopped_ns <= self.last_running_poll_ns
        return self.last_running_poll_ns > (time_ns if stop_is_known else time_ns + STOP_DELAY_NS)

    @property
    def last_ran_ns(self) -> int:
        """Newest time at which the guest is known to have run."""
        return max(self.resumed_ns, self.last_running_poll_ns)
