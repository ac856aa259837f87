"""Transcripts: the replies of real QEMUs in files. FakeQemu uses them as default replies.

`python -m tests.lab.transcript` captures a transcript from this machine's QEMU and from each downloaded QEMU (`tests/lab/qemus.py`). The
transcripts of QEMU 2.6, 4.2 and 5.2 were written by hand from QEMU's schemas.
"""

import asyncio
import json
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Self

from agent.cli.demo.guest import Guest, GuestKind, GuestOptions
from tests.lab.qemus import OTHER_RELEASES, find_qemu

FOLDER: Final = Path(__file__).parent.parent / "golden" / "transcripts"

NAME: Final = "vm1"
UUID: Final = "5bd1a5a4-5c0f-4d54-9d0b-7f2f4ad4d2e1"
COMMANDS: Final[tuple[tuple[str, dict[str, Any]], ...]] = (
    ("query-version", {}),
    ("query-name", {}),
    ("query-uuid", {}),
    ("query-status", {}),
    ("query-blockstats", {}),
    ("query-migrate", {}),
    ("query-migrate-capabilities", {}),
    ("query-balloon", {}),
    ("qom-list", {"path": "/machine/peripheral"}),
    ("qom-list", {"path": "/machine/peripheral-anon"}),
    ("query-yank", {}),
    ("query-cpus-fast", {}),
    ("query-iothreads", {}),
    ("query-block", {}),
    ("query-block-jobs", {}),
    ("query-jobs", {}),
    ("query-named-block-nodes", {"flat": True}),
    ("query-memory-size-summary", {}),
    ("query-memory-devices", {}),
    ("query-dirty-rate", {}),
    ("query-vcpu-dirty-limit", {}),
    ("query-dump", {}),
    ("query-stats", {"target": "vm"}),
    ("query-kvm", {}),
    ("query-pci", {}),
    ("query-chardev", {}),
    ("query-memdev", {}),
    ("query-tpm", {}),
    ("query-vnc-servers", {}),
    ("query-spice", {}),
    ("block-set-write-threshold", {"node-name": "disk0-storage", "write-threshold": 0}),
)
"""The commands of a transcript, each with its arguments."""


@dataclass(frozen=True, slots=True)
class Transcript:
    """The greeting and the replies of one QEMU.

    Attributes:
        greeting: The first message.
        exchanges: A list of `{"command", "arguments", "reply"}`. A reply has the member `return` or `error`.
    """

    greeting: dict[str, Any]
    exchanges: list[dict[str, Any]]

    @classmethod
    def load(cls, name: str = "qemu-7.2") -> Self:
        """Load a transcript from tests/golden/transcripts."""
        return cls(**json.loads((FOLDER / f"{name}.json").read_text()))

    def answer(self, command: str, arguments: dict[str, Any]) -> dict[str, Any]:
        """Return the reply to a command with these arguments; else a reply to this command with any arguments; else CommandNotFound."""
        known = [exchange for exchange in self.exchanges if exchange["command"] == command]
        exact = [exchange for exchange in known if exchange["arguments"] == arguments]
        for exchange in exact or known:
            reply: dict[str, Any] = exchange["reply"]
            return reply
        return {"error": {"class": "CommandNotFound", "desc": f"The command {command} has not been found"}}


def transcript_path(greeting: dict[str, Any]) -> Path:
    """Return the path of the transcript for the QEMU version in a greeting."""
    version = greeting["QMP"]["version"]["qemu"]
    return FOLDER / f"qemu-{version['major']}.{version['minor']}.json"


async def capture(monitor: Path) -> Transcript:
    """Run every command of a transcript on a monitor that no client holds. In the replies, the monitor's folder becomes /images."""
    reader, writer = await asyncio.open_unix_connection(monitor, limit=1 << 22)
    folder = str(monitor.parent).encode()

    async def receive() -> dict[str, Any]:
        message: dict[str, Any] = json.loads((await reader.readline()).replace(folder, b"/images"))
        return await receive() if "event" in message else message

    async def execute(command: str, arguments: dict[str, Any]) -> dict[str, Any]:
        writer.write(json.dumps({"execute": command, "arguments": arguments}).encode())
        return await receive()

    try:
        greeting = await receive()
        await execute("qmp_capabilities", {})
        exchanges = [
            {"command": command, "arguments": arguments, "reply": await execute(command, arguments)}
            for command, arguments in COMMANDS
        ]
    finally:
        writer.close()
    return Transcript(greeting, exchanges)


async def main() -> None:
    """Write a transcript for each available QEMU."""
    for release in ("", *OTHER_RELEASES):
        options = GuestOptions(kind=GuestKind.WRITER, binary=find_qemu(release).binary)
        with tempfile.TemporaryDirectory(prefix="qmp-") as folder:
            async with Guest(Path(folder), NAME, options, identity=UUID) as guest:
                await guest.wait_until_booted()
                transcript = await capture(guest.monitor)
        content = {"greeting": transcript.greeting, "exchanges": transcript.exchanges}
        transcript_path(transcript.greeting).write_text(json.dumps(content, indent=1) + "\n")


if __name__ == "__main__":
    asyncio.run(main())
