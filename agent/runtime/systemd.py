"""Notifications to systemd, sd_notify(3): ready, status, watchdog, stopping.

The agent sends watchdog pings only while it makes progress. If its event loop runs but no VM is polled, that is a bug, and a restart fixes
it. A restart does not fix a QEMU that stalls, or Kafka or a disk that fails: /readyz reports those, and the pings continue.
"""

import asyncio
import contextlib
import logging
import os
import socket
from collections.abc import Callable, Mapping

_log = logging.getLogger("agent")

STATUS_SECONDS = 10.0
"""Interval of the status line if there is no watchdog."""


class SystemdNotifier:
    """Sends notifications to systemd, if systemd started this process and expects them.

    Attributes:
        watchdog_seconds: how long systemd waits between two watchdog pings before it ends this process; 0 without a watchdog.
    """

    def __init__(self, environment: Mapping[str, str] = os.environ) -> None:
        self._path = environment.get("NOTIFY_SOCKET", "")
        own = environment.get("WATCHDOG_PID", str(os.getpid())) == str(os.getpid())
        timeout = environment.get("WATCHDOG_USEC", "")
        self.watchdog_seconds = int(timeout) / 1e6 if own and timeout.isdecimal() else 0.0

    def notify(self, **fields: str) -> None:
        """Send fields such as READY="1". Never blocks, and ignores a missing socket."""
        if not self._path:
            return
        address = "\0" + self._path[1:] if self._path.startswith("@") else self._path
        with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as to:
            text = "\n".join(f"{key}={value}" for key, value in fields.items())
            to.sendto(text.encode(), socket.MSG_DONTWAIT, address)

    async def watch(self, hang_reason: Callable[[], str], status: Callable[[], str]) -> None:
        """Send the status line and, while nothing hangs, three watchdog pings per watchdog timeout. Runs until cancelled."""
        if not self._path:
            return
        previous = ""
        while True:
            reason = hang_reason()
            if reason and reason != previous:
                _log.error("watchdog: %s: systemd gets no ping until this is over", reason)
            previous = reason
            ping = {} if reason or not self.watchdog_seconds else {"WATCHDOG": "1"}
            self.notify(STATUS=reason or status(), **ping)
            await asyncio.sleep(self.watchdog_seconds / 3 or STATUS_SECONDS)
