"""A libvirtd hangs until keepalive ends all connections with calls in progress. The calls fail, and the process does not crash."""

import asyncio
import signal
import sys

import pytest

from tests.lab.libvirt import Libvirtd
from tests.lab.libvirt_crowd import ANSWERED, ENDED, FORGET

pytestmark = pytest.mark.asyncio(loop_scope="module")


async def test_calls_fail_when_keepalive_ends_connections_and_then_succeed_again(libvirtd: Libvirtd) -> None:
    domain = await libvirtd.domain("crowded")
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-X", "faulthandler", "-m", "tests.lab.libvirt_crowd", libvirtd.uri, domain.uuid),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
    )
    assert process.stdin is not None
    assert process.stdout is not None

    async def all_get(outcome: bytes) -> bool:
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(outcome)
        async with asyncio.timeout(300):
            return await process.stdout.readline() == outcome

    try:
        assert await all_get(ANSWERED)
        for _ in range(2):
            # On a busy machine, the calls may have ended before the process reads the next line.
            assert await all_get(FORGET)
            await libvirtd.send_signal(signal.SIGSTOP)
            try:
                assert await all_get(ENDED), f"the process ended: {await process.wait()}"
                assert await all_get(FORGET)
            finally:
                await libvirtd.send_signal(signal.SIGCONT)
            assert await all_get(ANSWERED), f"the process ended: {await process.wait()}"
        process.stdin.close()
        assert await process.wait() == 0
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
