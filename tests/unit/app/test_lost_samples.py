"""Samples of a collector whose last poll failed: they leave the snapshot, and so /metrics and the page."""

import contextlib
import time
from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any

import pytest

from agent.app.agent import Agent
from agent.config.model import Config
from agent.exposition.prometheus import render_metrics
from agent.exposition.series_limits import SeriesLimits
from agent.exposition.snapshot import VmView
from agent.model.family import FieldValues, Sample
from agent.model.metrics.block import BLOCK, BLOCK_SPACE
from agent.model.metrics.block_layers import BLOCK_LAYER
from agent.model.metrics.runstate import RUNSTATE
from agent.session.shared_types import MonitorState
from tests.lab.fake_qemu import FakeError, FakeQemu
from tests.lab.thin_guests import ListSink
from tests.lab.waiting import until


@contextlib.asynccontextmanager
async def running_agent(fake: FakeQemu, resync: str = "1s") -> AsyncIterator[Agent]:
    """Run an agent that watches the scripted VM while the `with` block runs."""
    config = {
        "monitors": [{"dial": str(fake.path)}],
        "web": {"listen_address": "127.0.0.1:0"},
        "intervals": {"poll": "200ms", "resync": resync},
    }
    agent = Agent(Config.model_validate(config), ListSink())
    async with agent.run_in_background():
        await until(lambda: [*agent.snapshot.one_view_per_uuid()], 60)
        yield agent


@pytest.mark.parametrize(
    ("command", "series"),
    [
        ("query-block", "qemu_block_device_"),
        ("query-status", "qemu_runstate_"),
        ("query-blockstats", "qemu_block_read"),
    ],
)
@pytest.mark.parametrize("reply", [b'{"return":[{"device":"d",}]}\r\n', FakeError()], ids=["unreadable", "refused"])
async def test_the_series_of_a_failed_poll_end_and_come_back(
    fake: FakeQemu, command: str, series: str, reply: Any
) -> None:
    async with running_agent(fake) as agent:
        await until(lambda: series in render_metrics(agent.snapshot), 60)
        before = render_metrics(agent.snapshot)
        fake.replies[command] = reply
        fake.emit("STOP")
        fake.emit("DEVICE_TRAY_MOVED", {"device": "cd0", "id": "cd0", "tray-open": True})
        await until(lambda: series not in render_metrics(agent.snapshot), 60)
        assert "qemu_vm_up" in render_metrics(agent.snapshot)
        del fake.replies[command]
        await until(lambda: series in render_metrics(agent.snapshot), 60)
        assert count(render_metrics(agent.snapshot), series) == count(before, series)


def usages(view: VmView) -> list[FieldValues]:
    """Return the usages of a VM's disks that the snapshot has."""
    return [*view.polls[BLOCK_SPACE.name].current.values()] if BLOCK_SPACE.name in view.polls else []


async def test_a_vm_that_is_attached_again_has_its_unchanged_usages(fake: FakeQemu) -> None:
    async with running_agent(fake, resync="1h") as agent:
        (vm, before), *_ = agent.snapshot.one_view_per_uuid()
        await until(lambda: usages(before), 60)
        agent.snapshot.update_monitor_status(replace(before.status, state=MonitorState.GONE))
        agent.snapshot.update_monitor_status(before.status)
        view = agent.snapshot.view_of(vm)
        assert view is not None
        assert view is not before
        layers = [Sample(BLOCK_LAYER, *item) for item in before.polls[BLOCK_LAYER.name].current.items()]
        agent.snapshot.replace_samples(vm, (BLOCK_LAYER,), layers, 1)
        await until(lambda: usages(view) == usages(before), 60)  # the layers are not polled, so no usage has changed


async def test_new_series_limits_apply_to_unchanged_usages(fake: FakeQemu) -> None:
    async with running_agent(fake, resync="1h") as agent:
        (_, view), *_ = agent.snapshot.one_view_per_uuid()
        await until(lambda: usages(view), 60)
        before, limits = usages(view), agent.snapshot.limits
        agent.snapshot.limits = SeriesLimits(series_per_vm=0)
        await until(lambda: not usages(view), 60)
        agent.snapshot.limits = limits
        await until(lambda: usages(view) == before, 60)


async def test_the_usage_of_files_ends_while_their_layers_are_unknown(fake: FakeQemu) -> None:
    async with running_agent(fake, resync="1h") as agent:
        (vm, view), *_ = agent.snapshot.one_view_per_uuid()
        await until(lambda: agent.snapshot.vm_has_samples_of_family(vm, BLOCK_LAYER), 60)
        layers = [Sample(BLOCK_LAYER, *item) for item in view.polls[BLOCK_LAYER.name].current.items()]
        agent.observer.on_poll_failed(vm, (BLOCK_LAYER,), 1)

        def usages_of_files() -> list[Any]:
            return [values for values in usages(view) if values["measure"] == "allocated"]

        await until(lambda: not usages_of_files(), 60)  # from the next poll of the counters on
        assert agent.snapshot.vm_has_samples_of_family(vm, BLOCK)
        assert agent.snapshot.vm_has_samples_of_family(vm, RUNSTATE)
        agent.observer.on_samples(vm, (BLOCK_LAYER,), layers, time.time_ns())
        await until(usages_of_files, 60)  # the same layers are known again


def count(text: str, series: str) -> int:
    return sum(line.startswith(series) for line in text.splitlines())
