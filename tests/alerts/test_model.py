"""Whatever happens, in whatever order, and wherever the agent is killed: each rung is told once, and nobody else's threshold is touched."""

from typing import Any

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from agent.alerts.disk import Mode
from agent.alerts.ladder import MAX_BYTES
from tests.alerts.world import HYSTERESIS, UUID, VM, Agent, Journal, Look, Qemu, ladder

SIZE = 1000
QUIET_ROUNDS = 8
percents = st.integers(1, 100)


class Thresholds(RuleBasedStateMachine):
    """The rules are single steps of the guest, of QEMU, of the agent, of a rival, and of whoever kills one of them."""

    qemu: Qemu
    agent: Agent | None

    @initialize(
        driver=st.sampled_from(["host_device", "file"]), mode=st.sampled_from([Mode.ARM, Mode.ARM, Mode.OBSERVE])
    )
    def begin(self, driver: str, mode: Mode) -> None:
        self.qemu, self.journal, self.mode, self.now = Qemu(driver, SIZE), Journal(), mode, 1000.0
        self.agent = None
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
        ] = []  # how far the disk was written, and its size, at answers that the agent has heard
        self.start()

    def teardown(self) -> None:
        if hasattr(self, "qemu"):
            self.settle()

    @property
    def idle(self) -> bool:
        return self.attached and self.look is None and not self.orders and self.sent is None

    # The guest, the host and the rival.

    @rule(percent=percents, odd=st.integers(-1, 1))
    def write(self, percent: int, odd: int) -> None:
        size = self.qemu.node.medium.size
        event = self.qemu.node.write(max(1, min(size - 1, size * percent // 100 + odd)))
        if event is not None and self.attached:
            self.events.append(event)

    @rule(share=st.sampled_from([1.01, 1.1, 2.0]))
    def extend(self, share: float) -> None:
        self.qemu.node.medium.size = int(self.qemu.node.medium.size * share)

    @rule(keeps_old=st.booleans())
    def move(self, keeps_old: bool) -> None:  # noqa: FBT001 - drawn by hypothesis
        self.qemu.size = self.qemu.node.medium.size
        self.qemu.move(keeps_old=keeps_old)

    @precondition(lambda self: self.mode is Mode.ARM)
    @rule(value=st.integers(0, 200))
    def rival(self, value: int) -> None:
        value = value * 7 + 3 if value else 0
        if value not in self.my_values():
            self.rivals |= {value}
            self.qemu.node.slot = value

    def my_values(self) -> set[int]:
        return {value for _, value in self.mine} | set(ladder(self.qemu.node.medium.size).values())

    # The connection: answers and events come on it in no certain order.

    @precondition(lambda self: self.idle)
    @rule(with_nodes=st.booleans())
    def ask(self, with_nodes: bool) -> None:  # noqa: FBT001 - drawn by hypothesis
        self.look = self.qemu.look(with_nodes=with_nodes)

    @precondition(lambda self: self.look is not None)
    @rule()
    def answer(self) -> None:
        look, self.look = self.look, None
        assert self.agent is not None
        assert look is not None
        known = look.medium.end if self.qemu.driver == "file" else self.known(look)
        self.truths.append((known, self.qemu.node.medium.size))
        self.seen_written[look.node.name] = max(look.node.highest, self.seen_written.get(look.node.name, 0))
        slot = look.node.slot
        if look.with_nodes and slot and (look.node.name, slot) not in self.mine and slot not in self.my_values():
            self.seen_foreign = True
        self.now += 1
        self.agent.hear(look, self.now)
        self.orders = self.agent.orders()
        for node, value in self.orders:
            assert self.mode is Mode.ARM
            assert look.with_nodes, "a threshold is set on a fresh look only"
            assert (look.node.name, look.node.slot) == (node, 0), "somebody's threshold would be overwritten"
            assert not self.seen_foreign, "a slot that was somebody else's is left alone"
            assert 0 < value <= MAX_BYTES
            assert value >= self.seen_written[node], "it is known to be written further than that"

    def known(self, look: Look) -> int:
        """Return how far a device is known to be written: what happened while nobody watched is lost when QEMU counts from 0 again."""
        told: list[int] = [r.data["used_bytes"] for r in self.journal.records if r.data.get("path") == look.medium.path]
        return max(look.node.highest, *told, 0)

    @precondition(lambda self: self.events)
    @rule()
    def event(self) -> None:
        assert self.agent is not None
        self.agent.event(self.events.pop(0), int(self.now * 1e9))

    @precondition(lambda self: self.orders)
    @rule(noted=st.sampled_from([True, True, True, False]))
    def send(self, noted: bool) -> None:  # noqa: FBT001 - drawn by hypothesis
        """The note is on disk, or that took too long: the order goes out."""
        if noted:
            self.journal.commit()
        else:
            self.noted = False
        self.sent = self.orders.pop(0)
        self.mine.add(self.sent)

    @precondition(lambda self: self.sent is not None)
    @rule()
    def set(self) -> None:
        assert self.agent is not None
        self.agent.overseer.ordered(VM, "disk0", done=self.reaches_qemu())

    @precondition(lambda self: self.sent is not None)
    @rule(reached=st.booleans())
    def stall(self, reached: bool) -> None:  # noqa: FBT001 - drawn by hypothesis
        """QEMU answers late: what it answered is not known."""
        assert self.agent is not None
        if reached:
            self.reaches_qemu()
        self.sent = None
        self.agent.overseer.ordered(VM, "disk0", done=False)

    def reaches_qemu(self) -> bool:
        assert self.sent is not None
        (name, value), self.sent = self.sent, None
        node = self.qemu.nodes.get(name)
        if node is None:
            return False
        node.slot = value
        return True

    # Who comes and goes.

    @rule()
    def commit(self) -> None:
        self.journal.commit()

    @precondition(lambda self: self.attached)
    @rule(reached=st.booleans())
    def disconnect(self, reached: bool) -> None:  # noqa: FBT001 - drawn by hypothesis
        assert self.agent is not None
        if self.sent is not None:
            if reached:
                self.reaches_qemu()
            self.sent = None
            self.agent.overseer.ordered(VM, "disk0", done=False)
        self.lose_connection()
        self.agent.overseer.gone(VM, self.now, for_good=False)

    def lose_connection(self) -> None:
        self.attached, self.events, self.look, self.orders, self.sent = False, [], None, [], None

    @precondition(lambda self: self.agent is not None and not self.attached)
    @rule()
    def connect(self) -> None:
        assert self.agent is not None
        self.attached, self.seen_foreign = True, False
        self.agent.tell(self.agent.overseer.attached(VM, int(self.now * 1e9)))

    @rule(quick=st.booleans())
    def restart_qemu(self, quick: bool) -> None:  # noqa: FBT001 - drawn by hypothesis
        if self.sent is not None:
            self.sent = None
        self.seen_written = {}
        self.qemu.restart()
        if self.attached:
            assert self.agent is not None
            self.lose_connection()
            self.agent.overseer.gone(VM, self.now, for_good=quick)

    @precondition(lambda self: self.agent is not None)
    @rule(count=st.integers(0, 3), reached=st.booleans())
    def kill(self, count: int, reached: bool) -> None:  # noqa: FBT001 - drawn by hypothesis
        """Kill the agent: so many of the transactions that were on their way are on disk, the others are lost."""
        if self.sent is not None and reached:
            self.reaches_qemu()
        self.lose_connection()
        self.journal.commit(count)
        self.journal.coming.clear()
        self.agent = None

    @precondition(lambda self: self.agent is None)
    @rule()
    def start(self) -> None:
        self.agent = Agent(self.qemu, self.journal, self.mode, self.now)
        self.connect()

    # What must hold.

    @invariant()
    def each_alert_that_is_on_disk_is_told_and_resolved_in_turn(self) -> None:
        if not hasattr(self, "qemu"):
            return
        for record in self.journal.records[self.checked :]:
            data = record.data
            if data["owner"] == "other":
                assert not self.noted or data["level_bytes"] in self.rivals, (
                    f"our own threshold is taken for another's: {data}"
                )
                continue
            level, state = data["level"], data["state"]
            assert self.states.get(level, "resolved") != state, f"{level} is {state} twice"
            self.states[level] = state
            if state == "resolved":
                slack = int(data["limit_bytes"] * HYSTERESIS)
                assert any(end <= ladder(size)[level] - slack for end, size in self.truths), "it is exceeded still"
        self.checked = len(self.journal.records)

    @precondition(lambda self: self.idle)
    @rule()
    def settle(self) -> None:
        """Let everything that is under way arrive, and whatever is wanted be asked; then nothing that is exceeded is untold."""
        if self.agent is None:
            self.start()
        if not self.attached:
            self.connect()
        assert self.agent is not None
        wants = {"block", "nodes"}
        for _ in range(QUIET_ROUNDS):
            self.finish()
            wants |= self.agent.overseer.wants(VM)
            if not wants:
                break
            self.ask(with_nodes="nodes" in wants)
            self.answer()
            wants = set()
        assert not wants, f"it never comes to rest: {wants}"
        self.journal.commit()
        self.each_alert_that_is_on_disk_is_told_and_resolved_in_turn()
        self.everything_is_told()

    def finish(self) -> None:
        assert self.agent is not None
        if self.look is not None:
            self.answer()
        while self.orders or self.sent is not None:
            if self.sent is None:
                self.send(noted=True)
            self.set()
        while self.events:
            self.event()

    def everything_is_told(self) -> None:
        assert self.agent is not None
        node, medium = self.qemu.node, self.qemu.node.medium
        known = medium.end if self.qemu.driver == "file" else node.highest
        for level, size in ladder(medium.size).items():
            told = self.states.get(level, "resolved") == "firing"
            assert told or known <= size, f"{level} is exceeded and untold"
            assert not told or medium.end > size - int(medium.size * HYSTERESIS), f"{level} fires and is not exceeded"
        (guard,) = self.agent.overseer._vms[UUID].guards.values()
        if self.mode is Mode.ARM and not guard.foreign and guard.told < 3 and guard._refusals.get(node.name, 0) < 3:
            assert (node.name, node.slot) == guard.armed, "it is not armed"
            assert node.slot in self.my_values()
        if self.mode is Mode.OBSERVE:
            assert not self.mine


Thresholds.TestCase.settings = settings(
    max_examples=300,
    stateful_step_count=60,
    deadline=None,
    report_multiple_bugs=False,
    suppress_health_check=list(HealthCheck),
)
TestThresholds = Thresholds.TestCase
