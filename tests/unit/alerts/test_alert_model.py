"""Whatever happens, in whatever order, and wherever the agent is killed: each rung is told once, and nobody else's threshold is touched."""

from typing import Any, Final

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from agent.alerts.levels import MAX_BYTES
from agent.alerts.threshold_types import ThresholdMode
from tests.lab.threshold_model import HYSTERESIS, UUID, VM, Agent, Journal, Look, Qemu, ladder

SIZE: Final = 1000
QUIET_ROUNDS: Final = 8

STEPS: Final = {
    "write": 4,
    "write_past_the_threshold": 8,
    "extend": 1,
    "snapshot": 1,
    "pivot": 1,
    "rival": 1,
    "ask": 8,
    "answer": 12,
    "event": 6,
    "send": 8,
    "set": 8,
    "stall": 1,
    "commit": 4,
    "disconnect": 2,
    "connect": 4,
    "restart_qemu": 1,
    "kill": 2,
    "start": 6,
    "settle": 1,
}
"""Single steps of the guest, of QEMU, of the agent, of a rival, and of whoever kills one of them; and how often each comes."""

scripts = st.lists(
    st.tuples(st.sampled_from([name for name, weight in STEPS.items() for _ in range(weight)]), st.integers(0, 999)),
    min_size=30,
    max_size=90,
)


class World:
    """All that takes part. A step that cannot be taken now is none."""

    def __init__(self, driver: str, mode: ThresholdMode) -> None:
        self.qemu, self.journal, self.mode, self.now = Qemu(driver, SIZE), Journal(), mode, 1000.0
        self.agent: Agent | None = None
        self.attached = False
        self.events: list[dict[str, Any]] = []  # on their way to the agent
        self.look: Look | None = None  # an answer on its way to the agent
        self.orders: list[tuple[str, int]] = []  # to be sent, once the note is on disk
        self.sent: tuple[str, int] | None = None  # on its way to QEMU
        self.noted = True  # whether every threshold that was set had been noted before
        self.mine: set[tuple[str, int]] = set()
        self.rivals: set[int] = set()
        self.seen_foreign = False  # by this agent on this connection
        self.seen_written: dict[str, int] = {}
        self.checked = 0
        self.states: dict[str, str] = {}
        self.truths: list[
            tuple[int, int]
        ] = []  # how far the disk was known to be written, and its size, at each answer
        self.start(0)

    @property
    def is_idle(self) -> bool:
        return self.attached and self.look is None and not self.orders and self.sent is None

    # The guest, the host and the rival.

    def write(self, n: int) -> None:
        self._written(self.qemu.node.medium.size * n // 999)

    def write_past_the_threshold(self, n: int) -> None:
        if self.qemu.node.slot > 0:
            self._written(self.qemu.node.slot + n % 60)

    def _written(self, end: int) -> None:
        event = self.qemu.node.write(max(1, min(self.qemu.node.medium.size - 1, end)))
        if event is not None and self.attached:
            self.events.append(event)

    def extend(self, n: int) -> None:
        self.qemu.node.medium.size = int(self.qemu.node.medium.size * (1.01, 1.1, 2)[n % 3])

    def snapshot(self, _: int) -> None:
        self.qemu.size = self.qemu.node.medium.size
        self.qemu.move(keeps_old=True)

    def pivot(self, _: int) -> None:
        self.qemu.size = self.qemu.node.medium.size
        self.qemu.move(keeps_old=False)

    def rival(self, n: int) -> None:
        value = n // 4 * 7 + 3 if n % 4 else 0
        if self.mode is ThresholdMode.ARM and value not in self._my_values():
            self.rivals |= {value}
            self.qemu.node.slot = value

    def _my_values(self) -> set[int]:
        return {value for _, value in self.mine} | set(ladder(self.qemu.node.medium.size).values())

    # The connection: answers and events come on it in no certain order.

    def ask(self, n: int) -> None:
        if self.is_idle:
            self.look = self.qemu.look(with_nodes=n % 3 > 0)

    def answer(self, _: int) -> None:
        look, self.look = self.look, None
        if look is None:
            return
        assert self.agent is not None
        self.truths.append((self._known(look), self.qemu.node.medium.size))
        self.seen_written[look.node.name] = max(look.node.highest, self.seen_written.get(look.node.name, 0))
        slot = look.node.slot
        if look.with_nodes and slot and (look.node.name, slot) not in self.mine and slot not in self._my_values():
            self.seen_foreign = True
        self.now += 1
        self.agent.hear(look, self.now)
        self.orders = self.agent.pending_commands()
        for node, value in self.orders:
            assert self.mode is ThresholdMode.ARM
            assert look.with_nodes, "a threshold is set on a fresh look only"
            mine = slot == 0 or (node, slot) in self.mine or slot in self._my_values()
            assert look.node.name == node, "it is set on the storage that there is"
            assert mine, "somebody's threshold would be overwritten"
            assert not self.seen_foreign, "a slot that was somebody else's is left alone"
            assert 0 < value <= MAX_BYTES
            assert value >= self.seen_written[node], "it is known to be written further than that"

    def _known(self, look: Look) -> int:
        """Return how far it is known to be written: what nobody watched is lost when QEMU counts a device's writes from 0 again."""
        if self.qemu.driver == "file":
            return look.medium.end
        told: list[int] = [r.data["used_bytes"] for r in self.journal.records if r.data.get("path") == look.medium.path]
        return max(look.node.highest, *told, 0)

    def event(self, _: int) -> None:
        if self.events:
            assert self.agent is not None
            self.agent.event(self.events.pop(0), int(self.now * 1e9))

    def send(self, n: int) -> None:
        """The note is on disk, or that took too long: the order goes out."""
        if self.orders and self.sent is None:
            if n % 8:
                self.journal.commit()
            else:
                self.noted = False
            self.sent = self.orders.pop(0)
            self.mine.add(self.sent)

    def set(self, _: int) -> None:
        if self.sent is not None:
            assert self.agent is not None
            self.agent.alert_manager.on_command_done(VM, "disk0", done=self._reaches_qemu())

    def stall(self, n: int) -> None:
        """QEMU answers late: what it answered is not known."""
        if self.sent is not None:
            assert self.agent is not None
            self._is_cut_off(n)
            self.agent.alert_manager.on_command_done(VM, "disk0", done=False)

    def _reaches_qemu(self) -> bool:
        assert self.sent is not None
        (name, value), self.sent = self.sent, None
        node = self.qemu.nodes.get(name)
        if node is None:
            return False
        node.slot = value
        return True

    def _is_cut_off(self, n: int) -> None:
        if self.sent is not None and n % 2:
            self._reaches_qemu()
        self.sent = None

    # Who comes and goes.

    def commit(self, _: int) -> None:
        self.journal.commit(1)

    def disconnect(self, n: int) -> None:
        if self.attached:
            assert self.agent is not None
            if self.sent is not None:
                self._is_cut_off(n)
                self.agent.alert_manager.on_command_done(VM, "disk0", done=False)
            self._lose_connection()
            self.agent.alert_manager.on_gone(VM, self.now, for_good=False)

    def _lose_connection(self) -> None:
        self.attached, self.events, self.look, self.orders, self.sent = False, [], None, [], None

    def connect(self, _: int) -> None:
        if self.agent is not None and not self.attached:
            self.attached, self.seen_foreign = True, False
            self.agent.tell(self.agent.alert_manager.on_attached(VM, int(self.now * 1e9)))

    def restart_qemu(self, n: int) -> None:
        self.seen_written = {}
        self.qemu.restart()
        if self.attached:
            assert self.agent is not None
            self._lose_connection()
            self.agent.alert_manager.on_gone(VM, self.now, for_good=n % 2 > 0)

    def kill(self, n: int) -> None:
        """Kill the agent: some of the transactions that were on their way are on disk, the others are lost."""
        if self.agent is not None:
            self._is_cut_off(n)
            self._lose_connection()
            self.journal.commit(n // 2 % 4)
            self.journal.coming.clear()
            self.agent = None

    def start(self, _: int) -> None:
        if self.agent is None:
            self.agent = Agent(self.qemu, self.journal, self.mode, self.now)
            self.connect(0)

    # What must hold.

    def check(self) -> None:
        """What is on disk tells of each alert that it fires and that it is resolved in turn."""
        for record in self.journal.records[self.checked :]:
            data = record.data
            if data["owner"] == "other":
                assert not self.noted or data["level_bytes"] in self.rivals, f"it is our own: {data}"
                continue
            level, state = data["level"], data["state"]
            assert self.states.get(level, "resolved") != state, f"{level} is {state} twice"
            self.states[level] = state
            if state == "resolved":
                slack = int(data["limit_bytes"] * HYSTERESIS)
                assert any(end <= ladder(size)[level] - slack for end, size in self.truths), "it is exceeded still"
        self.checked = len(self.journal.records)

    def settle(self, _: int) -> None:
        """Let everything that is under way arrive, and whatever is wanted be asked; then nothing that is exceeded is untold."""
        self.start(0)
        self.connect(0)
        assert self.agent is not None
        wants = {"block", "nodes"}
        for _round in range(QUIET_ROUNDS):
            self._finish()
            wants |= self.agent.alert_manager.refreshes_due(VM)
            if not wants:
                break
            self.look = self.qemu.look(with_nodes="nodes" in wants)
            self.answer(0)
            wants = set()
        assert not wants, f"it never comes to rest: {wants}"
        self.journal.commit()
        self.check()
        self._everything_is_told()

    def _finish(self) -> None:
        self.answer(0)
        while self.orders or self.sent is not None:
            self.send(1)
            self.set(0)
        while self.events:
            self.event(0)

    def _everything_is_told(self) -> None:
        assert self.agent is not None
        node, medium = self.qemu.node, self.qemu.node.medium
        known = medium.end if self.qemu.driver == "file" else node.highest
        for level, size in ladder(medium.size).items():
            told = self.states.get(level, "resolved") == "firing"
            assert told or known <= size, f"{level} is exceeded and untold"
            assert not told or medium.end > size - int(medium.size * HYSTERESIS), f"{level} fires and is not exceeded"
        (tracker,) = self.agent.alert_manager._vms[UUID].trackers.values()
        if (
            self.mode is ThresholdMode.ARM
            and not tracker.slot.is_foreign
            and tracker.exceeded_levels < 3
            and tracker.slot._refusals.get(node.name, 0) < 3
        ):
            assert (node.name, node.slot) == tracker.slot.threshold, "it is not armed"
        if self.mode is ThresholdMode.OBSERVE:
            assert not self.mine


@pytest.mark.parametrize("driver", ["host_device", "file"])
@pytest.mark.parametrize("mode", [ThresholdMode.ARM, ThresholdMode.OBSERVE])
def test_each_rung_is_told_once_and_nobody_elses_threshold_is_touched(driver: str, mode: ThresholdMode) -> None:
    @settings(
        max_examples=300 if mode is ThresholdMode.ARM else 50, deadline=None, suppress_health_check=list(HealthCheck)
    )
    @given(scripts)
    def holds(script: list[tuple[str, int]]) -> None:
        world = World(driver, mode)
        for name, n in script:
            getattr(world, name)(n)
            world.check()
        world.settle(0)

    holds()
