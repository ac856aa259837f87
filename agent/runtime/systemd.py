"""Notifications to systemd, sd_notify(3): ready, status, watchdog, stopping.

The agent sends watchdog pings only while it makes progress. If the event loop runs but no VM is polled, the agent has a bug. The agent
then stops the pings, and systemd restarts the agent. A restart does not help if a QEMU stalls, or if Kafka or a disk fails. In these cases
the pings continue, and /readyz reports the failure.
"""

import asyncio
import contextlib
import logging
import os
import socket
from collections.abc import Callable, Mapping

_log = logging.getLogger("agent")

STATUS_SECONDS = 10.0
"""Seconds between two status lines if the systemd unit has no watchdog."""


class SystemdNotifier:
    """Sends notifications to systemd if the unit expects notifications.

    Attributes:
        watchdog_seconds: systemd's watchdog timeout for this process; 0 without a watchdog.
    """

    def __init__(self, environment: Mapping[str, str] = os.environ) -> None:
        self._path = environment.get("NOTIFY_SOCKET", "")
        for_this_process = environment.get("WATCHDOG_PID", str(os.getpid())) == str(os.getpid())
        timeout = environment.get("WATCHDOG_USEC", "")
        self.watchdog_seconds = int(timeout) / 1e6 if for_this_process and timeout.isdecimal() else 0.0

    def notify(self, **fields: str) -> None:
        """Send fields such as READY="1" without blocking. Ignore errors. Do nothing if NOTIFY_SOCKET is not set."""
        if not self._path:
            return
        address = "\0" + self._path[1:] if self._path.startswith("@") else self._path
        with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sender:
            text = "\n".join(f"{key}={value}" for key, value in fields.items())
            sender.sendto(text.encode(), socket.MSG_DONTWAIT, address)

    async def keep_notifying(self, hang_reason: Callable[[], str], status: Callable[[], str]) -> None:
        """Send the status line and a watchdog ping three times per watchdog timeout, until cancelled.

        Send only the status line, every `STATUS_SECONDS`, if the unit has no watchdog. Return at once if NOTIFY_SOCKET is not set.

        Args:
            hang_reason: returns why the agent makes no progress, or an empty text. Pings are sent only while the text is empty.
            status: returns the status line.
        """
        if not self._path:
            return
        previous = ""
        while True:
            reason = hang_reason()
            if reason and reason != previous:
                _log.error("watchdog: pings to systemd stopped: %s", reason)
            previous = reason
            ping = {} if reason or not self.watchdog_seconds else {"WATCHDOG": "1"}
            self.notify(STATUS=reason or status(), **ping)
            await asyncio.sleep(self.watchdog_seconds / 3 or STATUS_SECONDS)
