"""A flood of more events than the buffer can hold: alerts are delivered, and dropped events are reported."""

import asyncio
import time
from collections import Counter
from collections.abc import Sequence

from agent.app.agent import Agent
from agent.config.model import Config
from agent.model.record import EncodedRecord
from tests.lab.fake_qemu import FakeQemu
from tests.lab.thin_guests import ListSink
from tests.lab.waiting import until

FLOOD = 4000


class BlockedSink(ListSink):
    """A sink that accepts no record before a test releases it."""

    def __init__(self) -> None:
        super().__init__()
        self.released = asyncio.Event()

    async def send(self, batch: Sequence[EncodedRecord]) -> Sequence[EncodedRecord]:
        await self.released.wait()
        return await super().send(batch)


async def test_an_event_flood_hides_no_alert_and_drops_are_reported(fake: FakeQemu) -> None:
    config = {
        "monitors": [{"dial": str(fake.path)}],
        "web": {"listen_address": "127.0.0.1:0"},
        "buffer_memory": "1MiB",
    }
    app = Agent(Config.model_validate(config), sink := BlockedSink())
    async with app.run_in_background():
        await until(lambda: any(s.state.value == "up" for s in app.snapshot.monitors.values()), 60)
        for number in range(FLOOD):
            if number == FLOOD // 2:
                fake.emit("GUEST_PANICKED", {"action": "pause"})
            fake.emit("NIC_RX_FILTER_CHANGED", {"name": f"net{number}", "path": "/machine"}, at=time.time())
        (view,) = (view for _, view in app.snapshot.one_view_per_uuid())
        await until(lambda: view.events["NIC_RX_FILTER_CHANGED"] == FLOOD, 60)  # each is counted, even if it is dropped
        sink.released.set()
        await until(lambda: _types(sink)["qemu.agent.records_dropped"], 60)
        await until(lambda: _types(sink)["qemu.alert.guest_panicked"], 60)
    types = _types(sink)
    dropped = sum(app.publisher.delivery.drops.totals.values())
    assert dropped > 0
    kinds = ("event", "vm", "agent")
    events = sum(count for name, count in types.items() if name.startswith(tuple(f"qemu.{kind}." for kind in kinds)))
    created = sum(app.publisher.published[kind] for kind in kinds)
    assert events == created - dropped


def _types(sink: ListSink) -> Counter[str]:
    return Counter(record["type"] for record in sink.records)
