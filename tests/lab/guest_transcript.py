"""Replies of real guest agents, stored as files: the default replies of FakeGuestAgent.

`python -m tests.lab.guest_transcript` captures them from the qemu-ga of this machine, and of the other releases that
were fetched. The name and the kernel of the machine are replaced.
"""

import asyncio
import json
import os
import re
import socket
import tempfile
from pathlib import Path
from typing import Any, Final

from agent.qga.commands import GUEST_READS
from tests.lab.guest_agent import GuestAgentProcess
from tests.lab.qemus import OTHER_RELEASES

FOLDER: Final = Path(__file__).parent.parent / "golden" / "guest_agent"


def load(release: str = "7.2") -> dict[str, dict[str, Any]]:
    """Return the replies of a release of qemu-ga, by command."""
    replies: dict[str, dict[str, Any]] = json.loads((FOLDER / f"qemu-ga-{release}.json").read_text())
    return replies


async def capture(path: Path) -> dict[str, dict[str, Any]]:
    """Execute every command that the agent can send on a free channel, and return the replies by command."""
    reader, writer = await asyncio.open_unix_connection(path, limit=1 << 20)
    replies = {}
    try:
        for name in sorted(GUEST_READS):
            writer.write(json.dumps({"execute": name}).encode() + b"\n")
            replies[name] = json.loads(await reader.readline())
    finally:
        writer.close()
    return replies


async def main() -> None:
    """Write the transcripts of all releases that are available."""
    for release in ("", *OTHER_RELEASES):
        with tempfile.TemporaryDirectory(prefix="qmp-") as folder:
            async with GuestAgentProcess(Path(folder), release=release) as guest_agent:
                _write(await capture(guest_agent.socket))


def _write(replies: dict[str, dict[str, Any]]) -> None:
    """Write the replies to the file of their release."""
    text = json.dumps(replies, indent=1).replace(socket.gethostname(), "guest1")
    text = text.replace(os.uname().release, "6.1.0-40-cloud-amd64")
    major, minor, *_ = re.findall(r"\d+", replies["guest-info"]["return"]["version"])
    (FOLDER / f"qemu-ga-{major}.{minor}.json").write_text(text + "\n")


if __name__ == "__main__":
    asyncio.run(main())
