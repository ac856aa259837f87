"""Whatever one field of any answer or event is, all that is told of it is in order: records, series, the page's words, a person's line."""

import contextlib
from typing import Any

import orjson
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from agent.app.agent import Agent
from agent.cli.format import line
from agent.collectors import ALL, Facts, Intervals
from agent.config.model import Config
from agent.delivery.sinks.jsonl import JsonLinesSink
from agent.exposition.prometheus import render
from agent.model.events import EVENTS
from agent.model.record import EncodedRecord, RecordEncoder, Vm
from agent.monitors import Monitor
from agent.qmp.errors import QmpError
from agent.qmp.protocol import Event
from agent.session.api import MonitorState, MonitorStatus
from agent.session.identity import Build, who
from agent.session.migration_state import MigrationState
from agent.session.session import Session
from tests.lab.agent_process import Scrape
from tests.lab.hostile_host import CONTROL
from tests.lab.record_validation import faults, understood
from tests.unit.collectors.test_collectors import REAL, anything, places, replaced

PATIENT = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
"""A table of all characters is made at the first draw, which takes seconds where much else runs."""
HOUR = Intervals(poll=10, guest_memory=30, migration=1, resync=300)
BY_NAME = {collector.name: collector for collector in ALL}
text = st.text(st.characters(exclude_categories=["Cs"]), max_size=20) | st.sampled_from(
    ['"', "\\", "\n", 'x="y"} 1\nforged 1', "\x1b[31m", "\u2028", "\x00", "a" * 10_000, "{}", "%s", "../.."]
)
hostile = anything | text | st.recursive(text, lambda inner: st.lists(inner, max_size=3), max_leaves=50)


class Watching(Agent):
    """An agent that watches nobody and delivers nothing: what it would send is kept."""

    def __init__(self) -> None:
        config = Config.model_validate({"monitors": [{"dial": "/run/none.qmp"}], "host": "hv7"})
        super().__init__(config, JsonLinesSink(None, 1 << 20, 1))
        self.sent: list[EncodedRecord] = []
        self.vm = Vm("hv7", "5f0c2c9e-1111-4111-8111-111111111111", "web-3", "/run/web-3.qmp")

    def attach(self, vm: Vm) -> None:
        """Have a VM there."""
        self.vm = vm
        monitor = Monitor(vm.monitor, (vm.monitor,), _connect)
        self.on_status(MonitorStatus(monitor, MonitorState.UP, "", vm, Build("7.2.22", "Debian"), 1))


async def _connect(*_: Any, **__: Any) -> Any:
    raise AssertionError("nobody connects here")


def in_order(app: Watching) -> None:
    """Look at all that an agent tells."""
    series = Scrape.read(render(app.snapshot) + app.render_self_metrics().decode())
    assert not any("forged" in name for name, _ in series.values)
    assert not [value for value in series.values.values() if value != value]  # noqa: PLR0124 - NaN
    for stamped in app.sent:
        assert faults(stamped.body) == []
        understood(stamped.body)
        told = line(orjson.loads(stamped.body))
        assert not CONTROL.search(told), told


@pytest.fixture
def app(monkeypatch: pytest.MonkeyPatch) -> Watching:
    watching = Watching()
    stamp = RecordEncoder()
    monkeypatch.setattr(Watching, "_send", lambda self, record, *_: self.sent.append(stamp(record)))
    return watching


async def test_whatever_a_field_of_an_answer_is(app: Watching) -> None:
    app.attach(app.vm)

    @PATIENT
    @given(st.data())
    def holds(data: st.DataObject) -> None:
        app.sent.clear()
        name, replies = data.draw(st.sampled_from(REAL))
        which = data.draw(st.integers(0, len(replies) - 1))
        place = data.draw(st.sampled_from(list(places(replies[which]))))
        mutated = replaced(replies, (which, *place), data.draw(hostile))
        collector = BY_NAME[name]
        with contextlib.suppress(QmpError):
            samples = tuple(collector.collect(mutated))
            app.on_samples(app.vm, collector.families, samples, 1_700_000_000_000_000_000)
            wait = collector.next_poll_delay(samples, Facts(guest_stats_seconds=5), HOUR)
            assert wait is None or wait > 0
        in_order(app)

    holds()


async def test_whatever_is_in_an_event(app: Watching) -> None:
    app.attach(app.vm)
    fields = st.sampled_from(
        ["device", "node-name", "reason", "id", "status", "action", "nospace", "info", "actual", "x"]
    )
    names = st.sampled_from(sorted(EVENTS)) | text

    @PATIENT
    @given(names, st.dictionaries(fields, hostile, max_size=4), st.none() | st.integers(0, (1 << 33) * 10**9))
    def holds(name: str, data: dict[str, Any], time_ns: int | None) -> None:
        app.sent.clear()
        session = Session(app._terms, app, lambda _state, _reason: None, MigrationState())
        session._event_handler.attach(app.vm)
        session.hear(Event(name, data, time_ns))
        in_order(app)

    holds()


async def test_whatever_a_vm_says_that_it_is(app: Watching) -> None:
    @PATIENT
    @given(hostile, hostile)
    def holds(uuid: Any, name: Any) -> None:
        vm = who("hv7", "/run/x.qmp", [{"UUID": uuid}, {"name": name}])
        app.attach(vm)
        in_order(app)
        app.on_monitor_removed(Monitor(vm.monitor, (vm.monitor,), _connect))

    holds()
