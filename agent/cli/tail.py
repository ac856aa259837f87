"""`qmp-agent tail`: prints the records of a running agent as they arrive."""

import asyncio
import contextlib
import shutil
import sys
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, field

import orjson

from agent.cli.http_client import (
    REQUEST_ERRORS,
    AgentRequestError,
    EndpointCredentials,
    find_vm_uuid_in_overview,
    open_response,
    request_json,
)
from agent.cli.record_text import format_record
from agent.common.backoff import retry_delay
from agent.common.errors import SubcommandError

RESPONSE_SECONDS = 5.0
"""Timeout in seconds for connecting, and again for the response's header."""
SILENT_SECONDS = 60.0
"""Seconds without a line after which the connection counts as lost. An idle agent sends a keepalive line every 15 seconds."""


class TailError(SubcommandError):
    """The agent's records cannot be read."""


@dataclass(frozen=True, slots=True)
class TailOptions:
    """Which records to print, and how.

    Attributes:
        url: the URL of the agent's endpoint.
        vm: the name or UUID of a VM; empty for all VMs.
        type: prefix of the record types to print, with or without `qemu.`; empty for all types.
        severity: the lowest severity to print.
        json: whether to print whole records as JSON instead of readable lines.
        credentials: credentials for the endpoint.
    """

    url: str
    vm: str = ""
    type: str = ""
    severity: str = "debug"
    json: bool = False
    credentials: EndpointCredentials = field(default_factory=EndpointCredentials)


async def tail_records(options: TailOptions) -> None:
    """Print records until cancelled. Reconnect if the connection to the agent is lost.

    Raises:
        TailError: no agent answers the first request, the agent rejects a request, or the server is another program.
        EndpointCredentialsError: a file with credentials cannot be read.
    """
    kind = f"qemu.{options.type.removeprefix('qemu.')}" if options.type else ""
    query = {"vm": options.vm, "type": kind, "severity": options.severity}
    attempt = 0
    while True:
        try:
            async for line in _stream_lines(options, query):
                if attempt == 0:
                    await _warn_if_vm_unknown(options)
                attempt = 1
                _print_record(line, options)
        except _ConnectionLostError as error:
            if attempt == 0:
                raise TailError(
                    f"no agent answers at {options.url}: {error}; is it running with this web.listen_address?"
                ) from error
        print("connection to the agent lost; reconnecting", file=sys.stderr)
        attempt += 1
        await asyncio.sleep(retry_delay(attempt, 0.25, 5.0))


async def _warn_if_vm_unknown(options: TailOptions) -> None:
    """Print a warning if the agent has no VM with the requested name or UUID. The VM may still start later."""
    if not options.vm:
        return
    with contextlib.suppress(AgentRequestError):  # `tail` itself reports a lost agent
        required = {"vms": dict}
        overview = await request_json(options.credentials, "GET", options.url, "/overview", required=required)
        if not find_vm_uuid_in_overview(overview, options.vm):
            print(
                f"no VM has the name or UUID {options.vm} now; waiting for its records (`qmp-agent top` lists the VMs)",
                file=sys.stderr,
            )


class _ConnectionLostError(Exception):
    """No agent answers, or its response has ended early."""


async def _stream_lines(options: TailOptions, query: Mapping[str, str]) -> AsyncIterator[bytes]:
    """Yield an empty line when the agent's stream begins, and then the stream's lines until its end.

    Raises:
        TailError: the agent rejects the request.
        _ConnectionLostError: no agent answers, or the response ends early.
        EndpointCredentialsError: a file with credentials cannot be read.
    """
    request = open_response(options.credentials, "GET", options.url, "/records", params=query, seconds=RESPONSE_SECONDS)
    try:
        async with request as response:
            if response.status != 200:
                async with asyncio.timeout(RESPONSE_SECONDS):
                    text = await response.text()
                raise TailError(f"{options.url}: HTTP {response.status}: {text.strip()}")
            line = b"\n"
            while line:
                yield line
                # Do not use `wait_for`, because `wait_for` ignores a Ctrl-C that arrives together with a line.
                async with asyncio.timeout(SILENT_SECONDS):
                    line = await response.body.readline()
    except REQUEST_ERRORS as error:
        raise _ConnectionLostError(str(error) or "timeout") from error


def _print_record(raw: bytes, options: TailOptions) -> None:
    """Print the record in a line of a server-sent event. Ignore lines without a record.

    Raises:
        TailError: the line is not from an agent.
    """
    if not raw.startswith(b"data: "):
        return
    try:
        event = orjson.loads(raw[6:])
    except orjson.JSONDecodeError:
        event = None
    if not isinstance(event, dict) or not event.keys() & {"specversion", "records"}:
        raise TailError(f"{options.url}: the server is another program: it sends no records")
    if "specversion" not in event:
        print(
            f"({event['records']} records skipped: the agent published faster than this client read)",
            file=sys.stderr,
        )
    elif options.json:
        print(raw[6:].decode().rstrip(), flush=True)
    else:
        on_terminal = sys.stdout.isatty()
        width = shutil.get_terminal_size().columns if on_terminal else 0
        print(format_record(event, width=width, colour=on_terminal), flush=True)
