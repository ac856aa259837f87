"""CPU of a scrape with very many series, compared with prometheus_client, and how long it blocks the event loop."""

import asyncio
import time
from collections.abc import Iterator
from uuid import UUID

from aiohttp import web
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from agent.app.agent import Agent
from agent.collectors import block
from agent.config.model import Config
from agent.exposition.prometheus import render_metrics
from agent.http.handlers import create_application
from agent.model.family import FieldKind
from agent.model.metrics.block import BLOCK
from agent.model.record import Vm
from agent.monitors import Monitor
from agent.runtime.gc import scheduled_garbage_collection
from agent.session.shared_types import MonitorState, MonitorStatus
from tests.bench.monitors import two_disks
from tests.bench.table import Row
from tests.lab.snapshots import OPEN

SERIES = 100_000


class _ClientCollector(Collector):
    """The same series as prometheus_client's own objects, as in any exporter."""

    def __init__(self, app: Agent) -> None:
        self._app = app

    def collect(self) -> Iterator[Metric]:
        views = [(vm, view.polls["block"].current) for vm, view in self._app.snapshot.one_view_per_uuid()]
        for field in BLOCK.exported_fields():
            kind = CounterMetricFamily if field.kind is FieldKind.COUNTER else GaugeMetricFamily
            family = kind(
                BLOCK.metric_name(field).removesuffix("_total"), field.help, labels=["vm_uuid", "vm", "device"]
            )
            for vm, subjects in views:
                for labels, values in subjects.items():
                    if field.name in values:
                        family.add_metric([vm.uuid, vm.name, *labels], values[field.name])
            yield family


def filled_agent(series: int = SERIES) -> tuple[Agent, int]:
    """Return an agent with enough VMs for a number of series, and the number of its series."""
    app = Agent(Config.model_validate({"monitors": [{"dial": "/none/*.qmp"}]}))
    samples = tuple(block.COLLECTOR.collect([two_disks()]))
    count, number = 0, 0
    while count < series:
        if number % 100 == 0 and number:
            count = render_metrics(app.snapshot).count("\nqemu_")
        vm = Vm("host1", str(UUID(int=number + 1)), f"vm{number}", f"/run/vm{number}.qmp")
        monitor = Monitor(vm.monitor, (vm.monitor,), OPEN)
        app.snapshot.update_monitor_status(MonitorStatus(monitor, MonitorState.UP, "", vm, None, 1))
        app.snapshot.replace_samples(vm, block.COLLECTOR.families, samples, time.time_ns())
        number += 1
    return app, count


async def stall(app: Agent) -> float:
    """Return the longest time in seconds for which the event loop was blocked during a compressed scrape over HTTP."""
    runner = web.AppRunner(create_application(app.endpoint_source))
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    worst = 0.0

    async def watch() -> None:
        nonlocal worst
        while True:
            before = time.perf_counter()
            await asyncio.sleep(0.001)
            worst = max(worst, time.perf_counter() - before - 0.001)

    try:
        # The client is another process, since it would block this loop itself.
        url = f"http://127.0.0.1:{runner.addresses[0][1]}/metrics"
        watching = asyncio.create_task(watch())
        curl = await asyncio.create_subprocess_exec("curl", "-s", "-o", "/dev/null", "--compressed", url)
        await asyncio.wait_for(curl.wait(), 60)
        watching.cancel()
    finally:
        await runner.cleanup()
    return worst


async def scrape(*, short: bool) -> list[Row]:
    """Return the rows."""
    app, count = filled_agent()
    registry = CollectorRegistry()
    registry.register(_ClientCollector(app))
    ours, theirs = [], []
    for _ in range(3):
        begun = time.process_time()
        render_metrics(app.snapshot).encode()
        ours.append(time.process_time() - begun)
        begun = time.process_time()
        generate_latest(registry)
        theirs.append(time.process_time() - begun)
    each, peer = min(ours) / count * 1e6, min(theirs) / count * 1e6
    with scheduled_garbage_collection():  # as the agent runs
        block = min([await stall(app) for _ in range(1 if short else 3)])
    return [
        Row(f"scrape of {count:,} series", f"{each:.2f} us a series", target="≤ 1 us", met=each <= 1),
        Row(
            "the same by generate_latest",
            f"{peer:.2f} us a series",
            peer / each,
            "the agent",
            "≥ 10",
            peer >= 10 * each,
        ),
        Row(
            "longest block of the event loop during a scrape",
            f"{block * 1000:.0f} ms",
            target="≤ 20 ms",
            met=block <= 0.02,
        ),
    ]
