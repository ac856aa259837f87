"""Property tests: any value in any field of a reply or an event leaves records, series and text output well-formed."""

import contextlib
from typing import Any

import orjson
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from agent.app.agent import Agent
from agent.cli.record_text import format_record
from agent.collectors import ALL_COLLECTORS, PollIntervals, VmFacts
from agent.config.model import Config
from agent.delivery.sinks.jsonl import JsonLinesSink
from agent.exposition.prometheus import render_metrics
from agent.model.event_table import EVENT_DEFINITIONS_BY_NAME
from agent.model.record import EncodedRecord, RecordEncoder, Vm
from agent.monitors import Monitor
from agent.qmp.errors import QmpError
from agent.qmp.protocol import Event
from agent.session.event_handler import EventHandler
from agent.session.identity_and_features import QemuBuild, identify
from agent.session.shared_types import MonitorState, MonitorStatus
from tests.lab.agent_process import Scrape
from tests.lab.hostile_host import CONTROL_CHARACTERS
from tests.lab.record_validation import parse_cloudevent, schema_violations
from tests.unit.collectors.test_collectors import QEMU_REPLIES, any_json, copy_with, paths_in

NO_DEADLINE = settings(deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
"""The first draw builds a table of all characters, which takes seconds on a machine under load.

Each run has the same examples, so that a change is judged by what it changes. `make fuzz` searches for new ones.
"""
INTERVALS = PollIntervals(poll=10, guest_memory=30, migrations_and_jobs=1, resync=300)
COLLECTORS = {collector.name: collector for collector in ALL_COLLECTORS}
text = st.text(st.characters(exclude_categories=["Cs"]), max_size=20) | st.sampled_from(
    ['"', "\\", "\n", 'x="y"} 1\nforged 1', "\x1b[31m", "\u2028", "\x00", "a" * 10_000, "{}", "%s", "../.."]
)
hostile = any_json | text | st.recursive(text, lambda inner: st.lists(inner, max_size=3), max_leaves=50)


class RecordingAgent(Agent):
    """An agent without monitors and without delivery, which keeps the records that it would send."""

    def __init__(self) -> None:
        config = Config.model_validate({"monitors": [{"dial": "/run/none.qmp"}], "host": "hv7"})
        super().__init__(config, JsonLinesSink(None, 1 << 20, 1))
        self.sent: list[EncodedRecord] = []
        self.vm = Vm("hv7", "5f0c2c9e-1111-4111-8111-111111111111", "web-3", "/run/web-3.qmp")

    def attach(self, vm: Vm) -> None:
        """Report a VM as attached."""
        self.vm = vm
        monitor = Monitor(vm.monitor, (vm.monitor,), _connect)
        self.observer.on_monitor_status(
            MonitorStatus(monitor, MonitorState.UP, "", vm, QemuBuild("7.2.22", "Debian"), 1)
        )


async def _connect(*_: Any, **__: Any) -> Any:
    raise AssertionError("no test connects")


def assert_well_formed(app: RecordingAgent) -> None:
    """Assert that the series, the records and their lines of text are well-formed."""
    series = Scrape.read(render_metrics(app.snapshot) + app.metrics.render().decode())
    assert not any("forged" in name for name, _ in series.values)
    assert not [value for value in series.values.values() if value != value]  # noqa: PLR0124 - NaN
    for stamped in app.sent:
        assert schema_violations(stamped.body) == []
        parse_cloudevent(stamped.body)
        text = format_record(orjson.loads(stamped.body))
        assert not CONTROL_CHARACTERS.search(text), text


@pytest.fixture
def app(monkeypatch: pytest.MonkeyPatch) -> RecordingAgent:
    agent, encode = RecordingAgent(), RecordEncoder()
    monkeypatch.setattr(agent.publisher, "publish", lambda record, *_: agent.sent.append(encode(record)))
    return agent


async def test_any_value_in_a_field_of_a_reply_gives_well_formed_output(app: RecordingAgent) -> None:
    app.attach(app.vm)

    @NO_DEADLINE
    @given(st.data())
    def holds(data: st.DataObject) -> None:
        app.sent.clear()
        name, replies = data.draw(st.sampled_from(QEMU_REPLIES))
        index = data.draw(st.integers(0, len(replies) - 1))
        place = data.draw(st.sampled_from(list(paths_in(replies[index]))))
        mutated = copy_with(replies, (index, *place), data.draw(hostile))
        collector = COLLECTORS[name]
        with contextlib.suppress(QmpError):
            samples = tuple(collector.collect(mutated))
            app.observer.on_samples(app.vm, collector.families, samples, 1_700_000_000_000_000_000)
            wait = collector.next_poll_delay(samples, VmFacts(guest_stats_seconds=5), INTERVALS)
            assert wait is None or wait > 0
        assert_well_formed(app)

    holds()


async def test_any_event_gives_well_formed_output(app: RecordingAgent) -> None:
    app.attach(app.vm)
    fields = st.sampled_from(
        ["device", "node-name", "reason", "id", "status", "action", "nospace", "info", "actual", "x"]
    )
    names = st.sampled_from(sorted(EVENT_DEFINITIONS_BY_NAME)) | text

    @NO_DEADLINE
    @given(names, st.dictionaries(fields, hostile, max_size=4), st.none() | st.integers(0, (1 << 33) * 10**9))
    def holds(name: str, data: dict[str, Any], time_ns: int | None) -> None:
        app.sent.clear()
        handler = EventHandler(app.observer)
        handler.set_vm_and_report_buffered(app.vm)
        handler.on_event(Event(name, data, time_ns))
        assert_well_formed(app)

    holds()


async def test_any_uuid_and_name_give_well_formed_output(app: RecordingAgent) -> None:
    @NO_DEADLINE
    @given(hostile, hostile)
    def holds(uuid: Any, name: Any) -> None:
        vm = identify("hv7", "/run/x.qmp", [{"UUID": uuid}, {"name": name}])
        app.attach(vm)
        assert_well_formed(app)
        app.observer.on_monitor_removed(Monitor(vm.monitor, (vm.monitor,), _connect))

    holds()
