"""Serves the page of a fake host, for people to try. `python -m tests.lab.serve_page 60` shows 60 VMs; one stopped eight hours ago."""

import argparse
import asyncio
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, Final

from agent.model.record import Record, Severity
from tests.lab.endpoint import RunningEndpoint
from tests.lab.page_host import SECOND, FakeHost, FakeVm

HISTORY_SECONDS: Final = 600
NIGHT_SECONDS: Final = 8 * 3600
NO_SPACE: Final = {
    "device": "virtio-disk0",
    "operation": "write",
    "action": "stop",
    "nospace": True,
    "reason": "No space left on device",
}


class HostAfterNight(FakeHost):
    """A fake host whose VM with an I/O error stopped eight hours ago.

    Args:
        count: the number of VMs.
        start: the time of the first poll, seconds since the epoch.
    """

    def __init__(self, count: int, start: float) -> None:
        super().__init__(count, start)
        for fake in self.vms:
            if fake.trouble == "io-error":
                fake.since = start - NIGHT_SECONDS
                self.snapshot.update_monitor_status(fake.status())

    def firing_alerts(self) -> list[dict[str, Any]]:
        """Return the alerts, which began in the night."""
        return [alert | {"since": self.start - NIGHT_SECONDS} for alert in super().firing_alerts()]

    def publish_events(self) -> None:
        """Publish the events of the VM that stopped, and of a few others."""
        for fake in self.vms:
            if fake.trouble == "io-error":
                self._publish(fake, "BLOCK_IO_ERROR", NO_SPACE, Severity.ERROR)
                self._publish(fake, "STOP", {}, Severity.INFO)
        super().publish_events()

    def _publish(self, fake: FakeVm, name: str, fields: dict[str, Any], severity: Severity) -> None:
        at = int((self.start - NIGHT_SECONDS) * SECOND)
        data = {"event": name, "category": "state", "qemu": fields}
        record = Record(f"qemu.event.{name.lower()}", fake.vm, data, at, severity=severity)
        self.broadcaster.publish(self._encode(record))


async def serve(count: int, listen: str) -> None:
    """Serve the page until the task is cancelled."""
    host = HostAfterNight(count, time.time() - HISTORY_SECONDS)
    for _ in range(HISTORY_SECONDS):
        host.step()
    host.publish_events()
    with tempfile.TemporaryDirectory(prefix="qmp-") as folder:
        async with RunningEndpoint(Path(folder), listen=listen, view=host).open() as endpoint:
            sys.stdout.write(f"{endpoint.url}\n")
            sys.stdout.flush()
            while True:
                await asyncio.sleep(1)
                host.step()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("vms", type=int, nargs="?", default=60, help="the number of VMs")
    parser.add_argument("--listen", default="127.0.0.1:9180", help="the address to listen on")
    options = parser.parse_args()
    asyncio.run(serve(options.vms, options.listen))
