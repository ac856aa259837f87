"""A libvirtd that hangs until keepalive closes every connection, while many calls are under way: their process lives on."""

import asyncio
import signal
import sys

import pytest

from tests.lab.libvirt import Libvirtd
from tests.libvirt.crowd import ANSWERED, KEEPALIVE

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.timeout(180)]


async def test_calls_that_keepalive_ends_are_made_again(libvirtd: Libvirtd) -> None:
    domain = await libvirtd.domain("crowded")
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-X", "faulthandler", "-m", "tests.libvirt.crowd", libvirtd.uri, domain.uuid),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
    )
    assert process.stdin is not None
    assert process.stdout is not None

    async def answered() -> bytes:
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(b"\n")
        async with asyncio.timeout(30):
            return await process.stdout.readline()

    try:
        assert await answered() == ANSWERED
        interval, missed = KEEPALIVE
        for _ in range(2):
            await libvirtd.send_signal(signal.SIGSTOP)
            try:
                await asyncio.sleep(interval * (missed + 1) + 2)
            finally:
                await libvirtd.send_signal(signal.SIGCONT)
            assert await answered() == ANSWERED, f"the process ended: {await process.wait()}"
        process.stdin.close()
        assert await process.wait() == 0
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
