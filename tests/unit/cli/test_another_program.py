"""Subcommands that query the agent report another program on its port in one line."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable

import pytest

from agent.cli.commands.check import _watched_monitors
from agent.cli.explain import request_slow_vm_explanation
from agent.cli.http_client import AgentRequestError, EndpointCredentials, request_json
from agent.cli.rewrite_state_topic import request_state_rewrite
from agent.cli.tail import TailError, TailOptions, tail_records
from agent.cli.top.terminal import TopOptions, print_once


@contextlib.asynccontextmanager
async def serve(body: str, status: int = 200) -> AsyncIterator[str]:
    """Run a server that answers every request with this body, and yield its URL."""

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(f"HTTP/1.0 {status} OK\r\n\r\n{body}".encode())
        await writer.drain()
        writer.close()

    async with await asyncio.start_server(answer, "127.0.0.1", 0) as server:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"


async def assert_reported(request: Awaitable[object], error: type[Exception] = AgentRequestError) -> None:
    with pytest.raises(error, match="is another program"):
        await request


async def test_an_answer_that_is_no_json_object_is_from_another_program() -> None:
    async with serve("[1]") as url:
        await assert_reported(request_json(EndpointCredentials(), "GET", url, "/overview"))
        assert await _watched_monitors(url) == set()


@pytest.mark.parametrize("body", ["[]", "{}", '{"vms": [], "causes": {}}'])
async def test_top_and_explain_report_another_program(body: str) -> None:
    async with serve(body) as url:
        await assert_reported(print_once(TopOptions(url)))
        await assert_reported(request_slow_vm_explanation(url, EndpointCredentials(), "vm1"))


async def test_rewrite_state_reports_another_program() -> None:
    async with serve("{}", 202) as url:
        await assert_reported(request_state_rewrite(url, EndpointCredentials()))


@pytest.mark.parametrize("data", ["[]", "{}", "tick"])
async def test_tail_reports_another_program(data: str) -> None:
    async with serve(f"data: {data}\n\n") as url:
        await assert_reported(tail_records(TailOptions(url)), TailError)


async def test_tail_for_a_vm_reports_a_list_as_another_program() -> None:
    async with serve("data: []\n\n") as url:
        await assert_reported(tail_records(TailOptions(url, vm="vm1")), TailError)
