"""A libvirtd that hangs until keepalive closes all connections while many calls are under way: each is told, and their process lives on."""

import asyncio
import signal
import sys

import pytest

from tests.lab.libvirt import Libvirtd
from tests.lab.libvirt_crowd import ANSWERED, ENDED

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.timeout(180)]


async def test_calls_that_keepalive_ends_are_made_again(libvirtd: Libvirtd) -> None:
    domain = await libvirtd.domain("crowded")
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-X", "faulthandler", "-m", "tests.lab.libvirt_crowd", libvirtd.uri, domain.uuid),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
    )
    assert process.stdin is not None
    assert process.stdout is not None

    async def meets(what: bytes) -> bool:
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(what)
        async with asyncio.timeout(30):
            return await process.stdout.readline() == what

    try:
        assert await meets(ANSWERED)
        for _ in range(2):
            await libvirtd.send_signal(signal.SIGSTOP)
            try:
                assert await meets(ENDED), f"the process ended: {await process.wait()}"
            finally:
                await libvirtd.send_signal(signal.SIGCONT)
            assert await meets(ANSWERED), f"the process ended: {await process.wait()}"
        process.stdin.close()
        assert await process.wait() == 0
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
