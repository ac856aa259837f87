"""The state of a fleet from the messages of the state topic, against a table of what is true."""

from datetime import UTC, datetime, timedelta
from typing import Any, Final

from hypothesis import given
from hypothesis import strategies as st

from agent.consumer.fleet_state import FleetState
from agent.consumer.stream_record import MessagePosition, StreamRecord

START: Final = datetime(2026, 11, 30, tzinfo=UTC)
Message = tuple[str, StreamRecord | None]


def state_record(kind: str, host: str, path: str, seconds: float = 0, **data: Any) -> StreamRecord:
    attributes = {"id": "1", "source": f"/hosts/{host}/state/{path}", "type": f"qemu.state.{kind}", "host": host}
    if kind == "vm":
        attributes["vmuuid"] = path
    return StreamRecord(MessagePosition("qemu.state", 0, 0), attributes, data, START + timedelta(seconds=seconds))


def vm_message(uuid: str, host: str, seconds: float = 0, *, running: bool = True) -> Message:
    return f"{host}/{uuid}", state_record("vm", host, uuid, seconds, running=running)


def state_of(*messages: Message) -> FleetState:
    state = FleetState()
    for message in messages:
        state.apply_message(*message)
    return state


def host_of(state: FleetState, uuid: str) -> str | None:
    record = state.vm(uuid)
    return record.host if record is not None else None


def test_a_vm_that_moves_is_where_it_runs() -> None:
    arriving = (vm_message("a", "hv1"), vm_message("a", "hv2", 1, running=False))
    assert host_of(state_of(*arriving), "a") == "hv1"
    moved = (*arriving, vm_message("a", "hv1", 2, running=False), vm_message("a", "hv2", 2))
    assert host_of(state_of(*moved), "a") == "hv2"
    assert host_of(state_of(*moved, ("hv1/a", None)), "a") == "hv2"
    assert len(list(state_of(*moved).vms())) == 1


def test_a_vm_that_is_gone_has_no_state() -> None:
    state = state_of(vm_message("a", "hv1"), ("hv1/a", None), ("hv1/b", None))
    assert state.vm("a") is None
    assert list(state.vms()) == []
    assert len(state) == 0


def test_alerts_and_hosts_are_listed_by_type() -> None:
    alert, host = state_record("alert", "hv1", "f00", alert="disk_full"), state_record("host", "hv1", "")
    state = state_of(("alert", alert), ("host", host), vm_message("a", "hv1"))
    assert list(state.alerts()) == [alert]
    assert list(state.hosts()) == [host]


KEYS: Final = [(uuid, host) for uuid in "abc" for host in ("hv1", "hv2")]
CHANGES: Final = st.lists(st.tuples(st.sampled_from(KEYS), st.none() | st.booleans()), max_size=30)


@given(CHANGES, st.data())
def test_a_consumer_that_reads_twice_has_the_same_state(
    changes: list[tuple[tuple[str, str], bool | None]], data: st.DataObject
) -> None:
    messages = [
        (f"{host}/{uuid}", None) if running is None else vm_message(uuid, host, number, running=running)
        for number, ((uuid, host), running) in enumerate(changes)
    ]
    again_from = data.draw(st.integers(0, len(messages)))
    truth = {key: record for key, record in dict(messages).items() if record is not None}
    state = state_of(*messages, *messages[again_from:])
    late = state_of(*truth.items())  # what compaction leaves
    for uuid in "abc":
        candidates = [record for record in truth.values() if record.vm_uuid == uuid]
        expected = max(candidates, key=lambda record: (record.data["running"], record.time), default=None)
        assert state.vm(uuid) == late.vm(uuid) == expected
    assert len(state) == len(truth)
