"""`qmp-agent tail`: prints the records of a running agent as they arrive."""

import asyncio
import shutil
import sys
from dataclasses import dataclass, field

import aiohttp
import orjson

from agent.cli.format import format_record
from agent.cli.http_client import EndpointCredentials
from agent.common.backoff import back_off
from agent.common.errors import SubcommandError


class TailError(SubcommandError):
    """The agent's records cannot be read."""


@dataclass(frozen=True, slots=True)
class TailOptions:
    """Which records to print, and how.

    Attributes:
        url: the URL of the agent's endpoint.
        vm: the name or UUID of a VM; empty for all VMs.
        type: a prefix of the record type, with or without `qemu.`; empty for all types.
        severity: the lowest severity to print.
        json: print whole records as JSON instead of one readable line each.
        credentials: credentials for the endpoint.
    """

    url: str
    vm: str = ""
    type: str = ""
    severity: str = "debug"
    json: bool = False
    credentials: EndpointCredentials = field(default_factory=EndpointCredentials)


async def tail(options: TailOptions) -> None:
    """Print records until cancelled. Reconnects if the connection to the agent is lost.

    Raises:
        TailError: no agent answers the first request, or the agent rejects a request.
        EndpointCredentialsError: a file with credentials cannot be read.
    """
    kind = f"qemu.{options.type.removeprefix('qemu.')}" if options.type else ""
    query = {"vm": options.vm, "type": kind, "severity": options.severity}
    timeout = aiohttp.ClientTimeout(total=None, connect=5.0, sock_read=60.0)
    attempt = 0
    async with options.credentials.open_session(timeout=timeout, read_bufsize=1 << 22) as session:
        while True:
            try:
                async with session.get(f"{options.url}/records", params=query) as response:
                    if response.status != 200:
                        raise TailError(f"{options.url}: HTTP {response.status}: {(await response.text()).strip()}")
                    attempt = 1
                    async for raw in response.content:
                        _print_record(raw, options)
            except (aiohttp.ClientError, TimeoutError) as error:
                if attempt == 0:
                    raise TailError(
                        f"no agent answers at {options.url}: {error}; is it running with this web.listen_address?"
                    ) from error
            print("connection to the agent lost; reconnecting", file=sys.stderr)
            attempt += 1
            await asyncio.sleep(back_off(attempt, 0.25, 5.0))


def _print_record(raw: bytes, options: TailOptions) -> None:
    """Print the record that a line of a server-sent event has. Other lines are ignored."""
    if not raw.startswith(b"data: "):
        return
    event = orjson.loads(raw[6:])
    if "specversion" not in event:
        print(
            f"({event.get('records')} records skipped: the agent published faster than this client read)",
            file=sys.stderr,
        )
    elif options.json:
        print(raw[6:].decode().rstrip(), flush=True)
    else:
        on_terminal = sys.stdout.isatty()
        width = shutil.get_terminal_size().columns if on_terminal else 0
        print(format_record(event, width=width, colour=on_terminal), flush=True)
