"""Replies of real guest agents, stored as files: the default replies of FakeGuestAgent.

`python -m tests.lab.guest_transcript` captures them from the qemu-ga of this machine. Names and addresses of the machine are replaced.
"""

import asyncio
import json
import os
import re
import socket
import tempfile
from pathlib import Path
from typing import Any, Final

from agent.qga.commands import READS
from tests.lab.guest_agent import GuestAgentProcess

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
        for name in sorted(READS):
            writer.write(json.dumps({"execute": name}).encode() + b"\n")
            replies[name] = json.loads(await reader.readline())
    finally:
        writer.close()
    return replies


async def main() -> None:
    """Write the transcript of this machine's qemu-ga."""
    with tempfile.TemporaryDirectory(prefix="qmp-") as folder:
        async with GuestAgentProcess(Path(folder)) as guest_agent:
            replies = await capture(guest_agent.socket)
    text = json.dumps(replies, indent=1).replace(socket.gethostname(), "guest1")
    text = text.replace(os.uname().release, "6.1.0-40-cloud-amd64")
    major, minor, *_ = re.findall(r"\d+", replies["guest-info"]["return"]["version"])
    (FOLDER / f"qemu-ga-{major}.{minor}.json").write_text(text + "\n")


if __name__ == "__main__":
    asyncio.run(main())
