"""`qmp-agent tail`: the records of a running agent as they come."""

import asyncio
import shutil
import sys
from dataclasses import dataclass, field

import aiohttp
import orjson

from agent.cli.format import line
from agent.cli.http_client import EndpointCredentials
from agent.common.backoff import back_off
from agent.common.errors import CommandFailedError


class TailError(CommandFailedError):
    """There is nothing to look on; the text says why, for people."""


@dataclass(frozen=True, slots=True)
class Wanted:
    """Which records, and how.

    Attributes:
        url: the agent's endpoint.
        vm: a VM's name or UUID; empty is all.
        type: the beginning of the type, with or without `qemu.`; empty is all.
        severity: the least severe.
        json: whole records instead of lines for people.
        visitor: who asks.
    """

    url: str
    vm: str = ""
    type: str = ""
    severity: str = "debug"
    json: bool = False
    visitor: EndpointCredentials = field(default_factory=EndpointCredentials)


async def tail(wanted: Wanted) -> None:
    """Print records until cancelled, over restarts of the agent.

    Raises:
        TailError: no agent answers at the start, or it refuses the question.
        VisitError: what the visitor should show is not there.
    """
    kind = f"qemu.{wanted.type.removeprefix('qemu.')}" if wanted.type else ""
    query = {"vm": wanted.vm, "type": kind, "severity": wanted.severity}
    timeout = aiohttp.ClientTimeout(total=None, connect=5.0, sock_read=60.0)
    attempt = 0
    async with wanted.visitor.session(timeout=timeout, read_bufsize=1 << 22) as session:
        while True:
            try:
                async with session.get(f"{wanted.url}/records", params=query) as response:
                    if response.status != 200:
                        raise TailError(f"{wanted.url} refuses: {(await response.text()).strip()}")
                    attempt = 1
                    async for raw in response.content:
                        _show(raw, wanted)
            except (aiohttp.ClientError, TimeoutError) as error:
                if attempt == 0:
                    raise TailError(
                        f"no agent answers at {wanted.url}: {error}; is it running, with this web.listen_address?"
                    ) from error
            print("the agent is gone; waiting for it", file=sys.stderr)
            attempt += 1
            await asyncio.sleep(back_off(attempt, 0.25, 5.0))


def _show(raw: bytes, wanted: Wanted) -> None:
    """Print one line of a server-sent event."""
    if not raw.startswith(b"data: "):
        return
    event = orjson.loads(raw[6:])
    if "specversion" not in event:
        print(f"({event.get('records')} records went by too fast to show)", file=sys.stderr)
    elif wanted.json:
        print(raw[6:].decode().rstrip(), flush=True)
    else:
        on_terminal = sys.stdout.isatty()
        width = shutil.get_terminal_size().columns if on_terminal else 0
        print(line(event, width=width, colour=on_terminal), flush=True)
