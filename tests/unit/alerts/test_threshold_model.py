"""Threshold alerts with steps in any order and kills after any step. Each level is reported once, and foreign thresholds are kept."""

from typing import Any, Final

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from agent.alerts.disk_levels import MAX_SIZE_BYTES
from agent.alerts.disk_threshold_types import ThresholdMode
from tests.lab.threshold_model import HYSTERESIS, UUID, VM, Agent, Journal, Qemu, Reply, levels_in_bytes

SIZE: Final = 1000
QUIET_ROUNDS: Final = 8

STEPS: Final = {
    "write": 4,
    "write_past_the_threshold": 8,
    "extend": 1,
    "snapshot": 1,
    "pivot": 1,
    "set_foreign": 1,
    "query": 8,
    "deliver_reply": 12,
    "deliver_event": 6,
    "send_command": 8,
    "confirm_command": 8,
    "time_out": 1,
    "commit": 4,
    "disconnect": 2,
    "connect": 4,
    "restart_qemu": 1,
    "kill": 2,
    "start": 6,
    "settle": 1,
}
"""Steps of the guest, QEMU, the agent and another client, with their weights."""

step_lists = st.lists(
    st.tuples(st.sampled_from([name for name, weight in STEPS.items() for _ in range(weight)]), st.integers(0, 999)),
    min_size=30,
    max_size=90,
)


class Scenario:
    """A guest, QEMU, an agent and another client. A step that is impossible now does nothing."""

    def __init__(self, driver: str, mode: ThresholdMode) -> None:
        self.qemu, self.journal, self.mode, self.now = Qemu(driver, SIZE), Journal(), mode, 1000.0
        self.agent: Agent | None = None
        self.attached = False
        self.events: list[dict[str, Any]] = []  # in transit to the agent
        self.reply: Reply | None = None  # in transit to the agent
        self.commands: list[tuple[str, int]] = []  # to be sent after their entry is on disk
        self.sent: tuple[str, int] | None = None  # in transit to QEMU
        self.entry_persisted = True  # whether each threshold was persisted before it was set
        self.own: set[tuple[str, int]] = set()
        self.foreign: set[int] = set()
        self.polled_foreign = False  # by this agent over this connection
        self.polled_offset: dict[str, int] = {}
        self.checked = 0
        self.states: dict[str, str] = {}
        self.known_usage: list[tuple[int, int]] = []  # usage that was known, and the size, at each reply
        self.start(0)

    @property
    def is_idle(self) -> bool:
        return self.attached and self.reply is None and not self.commands and self.sent is None

    # The guest, the host and the other client.

    def write(self, n: int) -> None:
        self._write(self.qemu.node.medium.size * n // 999)

    def write_past_the_threshold(self, n: int) -> None:
        if self.qemu.node.slot > 0:
            self._write(self.qemu.node.slot + n % 60)

    def _write(self, end: int) -> None:
        deliver_event = self.qemu.node.write(max(1, min(self.qemu.node.medium.size - 1, end)))
        if deliver_event is not None and self.attached:
            self.events.append(deliver_event)

    def extend(self, n: int) -> None:
        self.qemu.node.medium.size = int(self.qemu.node.medium.size * (1.01, 1.1, 2)[n % 3])

    def snapshot(self, _: int) -> None:
        self.qemu.size = self.qemu.node.medium.size
        self.qemu.move(keeps_old=True)

    def pivot(self, _: int) -> None:
        self.qemu.size = self.qemu.node.medium.size
        self.qemu.move(keeps_old=False)

    def set_foreign(self, n: int) -> None:
        value = n // 4 * 7 + 3 if n % 4 else 0
        if self.mode is ThresholdMode.ARM and value not in self._own_values():
            self.foreign |= {value}
            self.qemu.node.slot = value

    def _own_values(self) -> set[int]:
        return {value for _, value in self.own} | set(levels_in_bytes(self.qemu.node.medium.size).values())

    # The connection. Replies and events arrive in any order.

    def query(self, n: int) -> None:
        if self.is_idle:
            self.reply = self.qemu.reply(with_nodes=n % 3 > 0)

    def deliver_reply(self, _: int) -> None:
        reply, self.reply = self.reply, None
        if reply is None:
            return
        assert self.agent is not None
        self.known_usage.append((self._known(reply), self.qemu.node.medium.size))
        self.polled_offset[reply.node.name] = max(reply.node.highest, self.polled_offset.get(reply.node.name, 0))
        slot = reply.node.slot
        if reply.with_nodes and slot and (reply.node.name, slot) not in self.own and slot not in self._own_values():
            self.polled_foreign = True
        self.now += 1
        self.agent.on_reply(reply, self.now)
        self.commands = self.agent.pending_commands()
        for node, value in self.commands:
            assert self.mode is ThresholdMode.ARM
            assert reply.with_nodes, "a threshold is set without a fresh read"
            own = slot == 0 or (node, slot) in self.own or slot in self._own_values()
            assert reply.node.name == node, "a threshold is set on another node"
            assert own, "a foreign threshold is overwritten"
            assert not self.polled_foreign, "a foreign slot is used"
            assert 0 < value <= MAX_SIZE_BYTES
            assert value >= self.polled_offset[node], "a threshold lies below the written end"

    def _known(self, reply: Reply) -> int:
        """Return the usage that an agent can know. A device's writes before QEMU opened it count only if they were reported."""
        if self.qemu.driver == "file":
            return reply.medium.end
        is_firing: list[int] = [
            r.data["used_bytes"] for r in self.journal.records if r.data.get("path") == reply.medium.path
        ]
        return max(reply.node.highest, *is_firing, 0)

    def deliver_event(self, _: int) -> None:
        if self.events:
            assert self.agent is not None
            self.agent.on_event(self.events.pop(0), int(self.now * 1e9))

    def send_command(self, n: int) -> None:
        """Send the command: its entry is on disk, or persisting it timed out."""
        if self.commands and self.sent is None:
            if n % 8:
                self.journal.commit()
            else:
                self.entry_persisted = False
            self.sent = self.commands.pop(0)
            self.own.add(self.sent)

    def confirm_command(self, _: int) -> None:
        if self.sent is not None:
            assert self.agent is not None
            self.agent.engine.threshold_commands.on_command_done(VM, "disk0", done=self._execute())

    def time_out(self, n: int) -> None:
        """Let the response time out. QEMU may have executed the command."""
        if self.sent is not None:
            assert self.agent is not None
            self._maybe_execute(n)
            self.agent.engine.threshold_commands.on_command_done(VM, "disk0", done=False)

    def _execute(self) -> bool:
        assert self.sent is not None
        (name, value), self.sent = self.sent, None
        node = self.qemu.nodes.get(name)
        if node is None:
            return False
        node.slot = value
        return True

    def _maybe_execute(self, n: int) -> None:
        if self.sent is not None and n % 2:
            self._execute()
        self.sent = None

    # Connections and processes.

    def commit(self, _: int) -> None:
        self.journal.commit(1)

    def disconnect(self, n: int) -> None:
        if self.attached:
            assert self.agent is not None
            if self.sent is not None:
                self._maybe_execute(n)
                self.agent.engine.threshold_commands.on_command_done(VM, "disk0", done=False)
            self._lose_connection()
            self.agent.engine.on_detached(VM, self.now, permanently=False)

    def _lose_connection(self) -> None:
        self.attached, self.events, self.reply, self.commands, self.sent = False, [], None, [], None

    def connect(self, _: int) -> None:
        if self.agent is not None and not self.attached:
            self.attached, self.polled_foreign = True, False
            self.agent.emit(self.agent.engine.on_attached(VM, int(self.now * 1e9)))

    def restart_qemu(self, n: int) -> None:
        self.polled_offset = {}
        self.qemu.restart()
        if self.attached:
            assert self.agent is not None
            self._lose_connection()
            self.agent.engine.on_detached(VM, self.now, permanently=n % 2 > 0)

    def kill(self, n: int) -> None:
        """Kill the agent. Some pending transactions are on disk, the others are lost."""
        if self.agent is not None:
            self._maybe_execute(n)
            self._lose_connection()
            self.journal.commit(n // 2 % 4)
            self.journal.pending.clear()
            self.agent = None

    def start(self, _: int) -> None:
        if self.agent is None:
            self.agent = Agent(self.qemu, self.journal, self.mode, self.now)
            self.connect(0)

    # Invariants.

    def check_records(self) -> None:
        """Check that each alert on disk fires and resolves in turn."""
        for record in self.journal.records[self.checked :]:
            data = record.data
            if data["owner"] == "other":
                assert not self.entry_persisted or data["level_bytes"] in self.foreign, (
                    f"a threshold of the agent is reported as foreign: {data}"
                )
                continue
            level, state = data["level"], data["state"]
            assert self.states.get(level, "resolved") != state, f"{level} is {state} twice"
            self.states[level] = state
            if state == "resolved":
                slack = int(data["limit_bytes"] * HYSTERESIS)
                assert any(end <= levels_in_bytes(size)[level] - slack for end, size in self.known_usage), (
                    f"{level} is still exceeded"
                )
        self.checked = len(self.journal.records)

    def settle(self, _: int) -> None:
        """Deliver everything in transit and run what is due; then every exceeded level is reported."""
        self.start(0)
        self.connect(0)
        assert self.agent is not None
        due = {"block", "nodes"}
        for _ in range(QUIET_ROUNDS):
            self._finish()
            due |= self.agent.engine.threshold_commands.pop_collectors_to_poll(VM)
            if not due:
                break
            self.reply = self.qemu.reply(with_nodes="nodes" in due)
            self.deliver_reply(0)
            due = set()
        assert not due, f"refreshes stay due: {due}"
        self.journal.commit()
        self.check_records()
        self._check_settled()

    def _finish(self) -> None:
        self.deliver_reply(0)
        while self.commands or self.sent is not None:
            self.send_command(1)
            self.confirm_command(0)
        while self.events:
            self.deliver_event(0)

    def _check_settled(self) -> None:
        assert self.agent is not None
        node, medium = self.qemu.node, self.qemu.node.medium
        known = medium.end if self.qemu.driver == "file" else node.highest
        for level, size in levels_in_bytes(medium.size).items():
            is_firing = self.states.get(level, "resolved") == "firing"
            assert is_firing or known <= size, f"{level} is exceeded and not reported"
            assert not is_firing or medium.end > size - int(medium.size * HYSTERESIS), (
                f"{level} fires and is not exceeded"
            )
        (tracker,) = self.agent.engine._processes.processes_with_uuid(UUID)[0].trackers.values()
        if (
            self.mode is ThresholdMode.ARM
            and not tracker.slot.is_foreign
            and tracker.exceeded_level_count < 3
            and tracker.slot._refusals.get(node.name, 0) < 3
        ):
            assert (node.name, node.slot) == tracker.slot.threshold, "the slot is not armed"
        if self.mode is ThresholdMode.OBSERVE:
            assert not self.own


@pytest.mark.parametrize("driver", ["host_device", "file"])
@pytest.mark.parametrize("mode", [ThresholdMode.ARM, ThresholdMode.OBSERVE])
def test_each_level_is_reported_once_and_foreign_thresholds_stay(driver: str, mode: ThresholdMode) -> None:
    @settings(
        max_examples=300 if mode is ThresholdMode.ARM else 50, deadline=None, suppress_health_check=list(HealthCheck)
    )
    @given(step_lists)
    def holds(steps: list[tuple[str, int]]) -> None:
        scenario = Scenario(driver, mode)
        for name, n in steps:
            getattr(scenario, name)(n)
            scenario.check_records()
        scenario.settle(0)

    holds()
