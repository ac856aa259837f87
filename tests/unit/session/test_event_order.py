"""Order of events: alerts receive each event when it is read, and records are emitted in the order of the events."""

import pytest

from agent.model.record import Record, Vm
from agent.qmp.protocol import Event
from agent.session.event_handler import ORDERED_EVENTS, EventHandler
from tests.lab.recording_observer import RecordingObserver

VM = Vm("hv7", "5bd1a5a4-5c0f-4d54-9d0b-7f2f4ad4d2e1", "web", "/run/web.qmp")


def io_error(time_ns: int, device: str = "disk0") -> Event:
    data = {"device": device, "operation": "write", "action": "stop", "nospace": True}
    return Event("BLOCK_IO_ERROR", data, time_ns)


def records(observer: RecordingObserver, callback: str) -> list[tuple[str, int]]:
    """Return the event and the time of each record that a callback received."""
    calls = (what for name, what in observer.calls if name == callback and isinstance(what, Record))
    return [(record.data["event"], record.time_ns) for record in calls]


async def test_alerts_receive_each_event_of_a_burst_when_it_is_read() -> None:
    observer = RecordingObserver()
    handler = EventHandler(observer)
    handler.set_vm_and_report_buffered(VM)
    for time_ns in range(5):
        handler.on_event(io_error(time_ns))
        assert records(observer, "on_event_read")[-1] == ("BLOCK_IO_ERROR", time_ns)
    assert records(observer, "on_record") == [("BLOCK_IO_ERROR", 0)], "the others are coalesced"
    handler.close()


@pytest.mark.parametrize("name", sorted(ORDERED_EVENTS))
async def test_coalesced_events_are_reported_before_the_run_state_changes(name: str) -> None:
    observer = RecordingObserver()
    handler = EventHandler(observer)
    handler.set_vm_and_report_buffered(VM)
    for time_ns in range(5):
        handler.on_event(io_error(time_ns, f"disk{time_ns % 2}"))
    handler.on_event(Event(name, {}, 5))
    handler.on_event(io_error(6))
    handler.close()
    times = [time_ns for _, time_ns in records(observer, "on_record")]
    assert times == [0, 1, 3, 4, 5, 6]
    assert len(records(observer, "on_event_read")) == 7
