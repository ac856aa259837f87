"""What the service manager is told: that the agent is ready, that it gets on with its work, and that it stops (sd_notify(3)).

The watchdog is fed with what was done, not by a timer: a loop that turns while nobody is asked any more is a bug that a new start mends.
What a new start does not mend (a QEMU that stalls, a Kafka or a disk that is away) keeps nothing from it: that is told by /readyz.
"""

import asyncio
import contextlib
import logging
import os
import socket
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

_log = logging.getLogger("agent")

STATUS_SECONDS = 10.0
"""How often the status line is told where there is no watchdog."""


@dataclass(slots=True)
class Progress:
    """What was done last, in seconds of the monotonic clock.

    Attributes:
        ticked_at: when the second's work was done.
        asked_at: when a VM answered a question, or was late with it.
    """

    ticked_at: float = field(default_factory=time.monotonic)
    asked_at: float = field(default_factory=time.monotonic)

    def stuck(self, *, up: int, patience: float) -> str:
        """Return what is not being done, in words; empty where all is.

        Args:
            up: how many VMs are there to be asked.
            patience: seconds in which each of them is asked at least once.
        """
        now = time.monotonic()
        if up == 0:
            self.asked_at = now
        if now - self.ticked_at > patience:
            return f"alerts have not been looked at for {now - self.ticked_at:.0f} s"
        if now - self.asked_at > patience:
            return f"{up} VMs are up, and none has been asked anything for {now - self.asked_at:.0f} s"
        return ""


class SystemdNotifier:
    """systemd, where it started us and wants to hear of us; else nobody."""

    def __init__(self, environment: Mapping[str, str] = os.environ) -> None:
        self._path = environment.get("NOTIFY_SOCKET", "")
        mine = environment.get("WATCHDOG_PID", str(os.getpid())) == str(os.getpid())
        text = environment.get("WATCHDOG_USEC", "")
        self.watchdog_seconds = int(text) / 1e6 if mine and text.isdecimal() else 0.0
        """How long it waits between two signs of life before it ends us; 0 is for ever."""

    def tell(self, **what: str) -> None:
        """Tell it something, such as READY="1"; without waiting, and without harm where it does not listen."""
        if not self._path:
            return
        address = "\0" + self._path[1:] if self._path.startswith("@") else self._path
        with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as to:
            text = "\n".join(f"{key}={value}" for key, value in what.items())
            to.sendto(text.encode(), socket.MSG_DONTWAIT, address)

    async def watch(self, stuck: Callable[[], str], status: Callable[[], str]) -> None:
        """Show a sign of life for as long as nothing is stuck, three times in the time that there is for one."""
        if not self._path:
            return
        was = ""
        while True:
            why = stuck()
            if why and why != was:
                _log.error("the service manager is told of no progress: %s", why)
            was = why
            alive = {} if why or not self.watchdog_seconds else {"WATCHDOG": "1"}
            self.tell(STATUS=why or status(), **alive)
            await asyncio.sleep(self.watchdog_seconds / 3 or STATUS_SECONDS)
