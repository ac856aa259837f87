"""`python -m tests.kubevirt`, which shows a newcomer a node like KubeVirt's, works as a command."""

import asyncio
import sys


async def test_the_page_has_the_vm_of_every_pod() -> None:
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "tests.kubevirt", "--pods", "2", "--seconds", "0"), stdout=asyncio.subprocess.PIPE
    )
    async with asyncio.timeout(600):
        out, _ = await process.communicate()
    assert process.returncode == 0
    lines = [line.strip() for line in out.decode().splitlines()]
    assert lines[-3:-1] == ["demo_vm-0", "demo_vm-1"]
    assert "the page has all 2 VMs: http://127.0.0.1:" in lines[-1]
