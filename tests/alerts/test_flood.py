"""More events than can be kept: what somebody is to be woken for comes through, and the rest is told of as lost."""

import time
from collections import Counter

import pytest

from agent.app import App
from agent.config import Config
from agent.delivery.lane import Lane
from agent.demo.guest import until
from tests.alerts.thin import ListSink
from tests.lab.fake import FakeQemu

FLOOD = 4000


async def test_a_flood_hides_no_alert_and_what_is_lost_of_it_is_told(
    fake: FakeQemu, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Lane, "has_room", False)
    config = {
        "monitors": [{"dial": str(fake.path)}],
        "prometheus": {"listen": "127.0.0.1:0"},
        "memory_budget": "1MiB",
    }
    app = App(Config.model_validate(config), sink := ListSink())
    async with app.running():
        await until(lambda: any(s.state.value == "up" for s in app.snapshot.monitors.values()), 5)
        for number in range(FLOOD):
            if number == FLOOD // 2:
                fake.emit("GUEST_PANICKED", {"action": "pause"})
            fake.emit("NIC_RX_FILTER_CHANGED", {"name": f"net{number}", "path": "/machine"}, at=time.time())
        (view,) = (view for _, view in app.snapshot.views())
        await until(lambda: view.events["NIC_RX_FILTER_CHANGED"] == FLOOD, 10)  # each is counted, told or not
        await until(lambda: _types(sink)["qemu.agent.lost"], 10)
        await until(lambda: _types(sink)["qemu.alert.guest_panicked"], 10)
    types = _types(sink)
    assert types["qemu.event.guest_panicked"] == 1
    lost = sum(app.delivery.losses.totals.values())
    assert lost
    assert types["qemu.event.nic_rx_filter_changed"] == FLOOD - lost


def _types(sink: ListSink) -> Counter[str]:
    return Counter(record["type"] for record in sink.records)
