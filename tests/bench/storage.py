"""CPU of watching storage pools: 500 VMs with two disks each on 20 file systems, compared with the polls of these VMs."""

import asyncio
import contextlib
import os
import subprocess
import tempfile
import time
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Final
from uuid import UUID

from agent.app.agent import Agent
from agent.config.model import Config
from agent.model.family import Sample
from agent.model.metrics.block_layers import BLOCK_LAYER
from agent.model.metrics.identity import IDENTITY
from agent.model.record import Vm
from tests.bench.poll import microseconds
from tests.bench.process import cpu_seconds
from tests.bench.roles import DiscardingSink
from tests.bench.table import Row
from tests.lab.waiting import until

VMS: Final = 500
POOLS: Final = 20
DISKS: Final = 2
POLL_SECONDS: Final = 10.0
GIB: Final = 1 << 30


@contextlib.contextmanager
def _file_systems(folder: Path) -> Iterator[list[Path]]:
    """Mount the file systems while the block runs. Needs root."""
    points = [folder / f"pool{number}" for number in range(POOLS)]
    try:
        for point in points:
            point.mkdir()
            subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1T", "tmpfs", point], check=True)
        yield points
    finally:
        for point in points:
            subprocess.run(["umount", point], check=False)


def _layers(points: list[Path], number: int) -> list[Sample]:
    """Return the samples of a VM's disks, each with its image on another pool."""
    samples = []
    for disk in range(DISKS):
        path = str(points[(number + disk) % POOLS] / f"vm{number}-{disk}.qcow2")
        values = {"node": f"n{disk}", "path": path, "size_bytes": 100 * GIB, "allocated_bytes": GIB, "read_only": False}
        samples.append(Sample(BLOCK_LAYER, (f"disk{disk}", "format"), values | {"driver": "qcow2"}))
        samples.append(Sample(BLOCK_LAYER, (f"disk{disk}", "storage"), values | {"driver": "file"}))
    return samples


def _children(without: Collection[int] = ()) -> list[int]:
    """Return the child processes of this process, without those of other parts of the benchmark."""
    pids = map(int, Path(f"/proc/self/task/{os.getpid()}/children").read_text().split())
    return [pid for pid in pids if pid not in without]


async def _pool_seconds(seconds: float) -> float:
    """Return the seconds of CPU for each second that the agent and its child take for the pools."""
    with tempfile.TemporaryDirectory(prefix="qmp-") as folder, _file_systems(Path(folder)) as points:
        app = Agent(Config.model_validate({"monitors": [{"dial": "/none/*.qmp"}]}), DiscardingSink())
        app.storage._fallback = None  # there is no libvirtd
        others = _children()
        task = asyncio.create_task(app.storage.run())
        try:
            for number in range(VMS):
                vm = Vm("hv7", str(UUID(int=number + 1)), f"vm{number}", f"/run/vm{number}.qmp")
                app.storage.on_samples(vm, (IDENTITY,), [Sample(IDENTITY, (), {"pid": str(os.getpid())})])
                app.storage.on_samples(vm, (BLOCK_LAYER,), _layers(points, number))
            await until(lambda: sum(usage.reading is not None for usage in app.storage.registry) == POOLS, 60)
            await until(lambda: sum(len(usage.vm_names) for usage in app.storage.registry) == VMS * DISKS, 60)
            await asyncio.sleep(5.0)  # the last images of the start are placed
            before, children, start = time.process_time(), cpu_seconds(_children(others)), time.monotonic()
            await asyncio.sleep(seconds)
            spent = time.process_time() - before + cpu_seconds(_children(others)) - children
            return spent / (time.monotonic() - start)
        finally:
            task.cancel()
            await asyncio.wait({task})


async def storage(*, short: bool) -> list[Row]:
    """Return the rows; none without root."""
    if os.geteuid() != 0:
        return []
    pools = min([await _pool_seconds(30.0 if short else 60.0) for _ in range(1 if short else 2)])
    poll = min([await microseconds("agent", 100, 2.0) for _ in range(2)]) * VMS / POLL_SECONDS / 1e6
    share = pools / poll
    figure = f"{pools * 1e3:.2f} ms of CPU in a second"
    what = f"agent, {POOLS} pools of {VMS} VMs"
    return [Row(what, figure, share, f"the polls of {VMS} VMs every {POLL_SECONDS:g} s", "< 0.02", share < 0.02)]
