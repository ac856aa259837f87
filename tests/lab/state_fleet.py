"""A scripted fleet: VMs that start, stop, pause, move and die on several hosts, whose agents are killed and started again.

The fleet drives the agents' session callbacks, alerts and state topic. It knows what is true, so it is the oracle of that topic.
"""

import asyncio
import random
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from uuid import UUID

import orjson

from agent.app.agent import Agent
from agent.config.model import Config
from agent.model.family import Sample
from agent.model.metrics.block_layers import BLOCK_LAYER
from agent.model.metrics.guest import GUEST_AGENT
from agent.model.metrics.runstate import RUNSTATE
from agent.model.persistent_entry import PersistentEntry
from agent.model.record import EncodedRecord, Record, Vm
from agent.monitors import Monitor
from agent.session.identity_and_features import QemuBuild
from agent.session.shared_types import MonitorState, MonitorStatus, VmLifecycleChange
from tests.lab.thin_guests import ListSink

AWAY = 61.0
"""Seconds after which an agent deletes the state of a VM that it has lost."""

Deliver = Callable[[Sequence[EncodedRecord]], Awaitable[None]]
"""Writes records to the topic."""


class CompactedTopic:
    """A compacted topic in memory: the last value of each key."""

    def __init__(self) -> None:
        self.values: dict[str, bytes] = {}
        self.writes = 0

    async def deliver(self, records: Sequence[EncodedRecord]) -> None:
        """Write records one by one, so that a killed writer has written some of them."""
        for record in records:
            self.writes += 1
            if record.body:
                self.values[record.key] = record.body
            else:
                self.values.pop(record.key, None)
            await asyncio.sleep(0)


@dataclass
class ScriptedVm:
    """A VM of the fleet: what is true about it."""

    uuid: str
    name: str
    host: int
    status: str = "running"
    disks: int = 1
    panicked: bool = False

    @property
    def facts(self) -> dict[str, Any]:
        """Fields that the state of the VM should have."""
        return {
            "monitor_state": "up",
            "run_state": self.status,
            "running": self.status == "running",
            "disks": [f"disk{number}" for number in range(self.disks)],
            "guest_agent_connected": True,
        }


@dataclass
class ScriptedHost:
    """One host. Its journal survives kills of its agent.

    Attributes:
        name: name of the host.
        deliver: writes records to the topic.
        entries: the entries in the journal.
        agent: the running agent; None while it is dead.
        now: the time in seconds of the agent's monotonic clock.
    """

    name: str
    folder: Path
    deliver: Deliver
    entries: dict[str, Any] = field(default_factory=dict)
    agent: Agent | None = None
    now: float = 0.0

    def start_agent(self, vms: Sequence[ScriptedVm]) -> None:
        """Start an agent that finds these VMs running."""
        config = {
            "host": self.name,
            "monitors": [{"dial": "/nowhere"}],
            "kafka": {"bootstrap_servers": ["127.0.0.1:1"]},
            "journal": {"directory": str(self.folder)},
        }
        agent = self.agent = Agent(Config.model_validate(config), ListSink())
        assert agent.state_publisher is not None
        assert agent.publisher.delivery.journal is not None
        agent.publisher.delivery.journal.stored_persistent_entries = dict(self.entries)
        agent.state_publisher._sink = self
        agent.state_publisher._clock = lambda: self.now
        publish = agent.publisher.publish

        def publish_and_store(record: Record, entry: PersistentEntry | None = None) -> str:
            if entry is not None:
                self._store(entry)
            return publish(record, entry)

        agent.publisher.publish = publish_and_store  # type: ignore[method-assign]  # the journal stores both in one transaction
        agent.alerts.restore()
        agent.state_publisher.restore(self.entries)
        for vm in vms:
            self.attach(vm)

    async def kill_agent(self, rng: random.Random) -> None:
        """Kill the agent, perhaps while it writes states."""
        assert self.agent is not None
        assert self.agent.state_publisher is not None
        turn = asyncio.create_task(self.agent.state_publisher.build_and_write_changed_states())
        for _ in range(rng.randrange(40)):
            await asyncio.sleep(0)
        turn.cancel()
        await asyncio.wait({turn})
        self.agent = None

    # The interface of the agent's journal and sink.

    def encode_and_broadcast_state(self, record: Record) -> EncodedRecord:
        assert self.agent is not None
        return self.agent.publisher.encode_and_broadcast_state(record)

    async def deliver_state(self, records: Sequence[EncodedRecord]) -> None:
        await self.deliver(records)

    async def store_entry_in_journal(self, entry: PersistentEntry) -> bool:
        await asyncio.sleep(0)
        self._store(entry)
        return True

    def _store(self, entry: PersistentEntry) -> None:
        if entry.value is None:
            self.entries.pop(entry.name, None)
        else:
            self.entries[entry.name] = entry.value

    # What the sessions report.

    def attach(self, vm: ScriptedVm) -> None:
        """Report that the session with a VM began."""
        if self.agent is None:
            return
        source = self._source(vm)
        record = Record(VmLifecycleChange.ATTACHED.record_type, source, {"monitor": source.monitor}, time.time_ns())
        self.agent.observer.on_lifecycle(VmLifecycleChange.ATTACHED, record)
        self.agent.observer.on_monitor_status(self._status(vm, MonitorState.UP))
        self.poll(vm)

    def poll(self, vm: ScriptedVm) -> None:
        """Report a poll of a VM."""
        if self.agent is None:
            return
        values = {"status": vm.status, "running": vm.status == "running", "since_timestamp_seconds": 1.0}
        disks = [
            Sample(BLOCK_LAYER, (f"disk{n}", "format"), {"driver": "qcow2", "size_bytes": 1 << 30})
            for n in range(vm.disks)
        ]
        samples = [Sample(RUNSTATE, (), values), Sample(GUEST_AGENT, (), {"connected": True}), *disks]
        self.agent.observer.on_samples(self._source(vm), (RUNSTATE, GUEST_AGENT, BLOCK_LAYER), samples, time.time_ns())

    def detach(self, vm: ScriptedVm, change: VmLifecycleChange, **data: Any) -> None:
        """Report that the session with a VM ended."""
        if self.agent is None:
            return
        record = Record(change.record_type, self._source(vm), {"reason": "scripted", **data}, time.time_ns())
        self.agent.observer.on_lifecycle(change, record)
        self.agent.observer.on_monitor_status(self._status(vm, MonitorState.GONE))

    def emit(self, vm: ScriptedVm, event: str) -> None:
        """Report an event."""
        if self.agent is not None:
            data = {"event": event, "category": "runstate", "qemu": {"action": "pause"}}
            record = Record(f"qemu.event.{event.lower()}", self._source(vm), data, time.time_ns())
            self.agent.observer.on_event_before_coalescing(record)

    def expire_alerts(self) -> None:
        """Let the agent resolve the alerts of VMs that are gone."""
        if self.agent is not None:
            alerts = self.agent.alerts
            alerts.publish(alerts.engine.tick(time.monotonic() + AWAY, time.time_ns()))

    def _source(self, vm: ScriptedVm) -> Vm:
        return Vm(self.name, vm.uuid, vm.name, f"/run/{vm.name}.qmp")

    def _status(self, vm: ScriptedVm, state: MonitorState) -> MonitorStatus:
        monitor = Monitor(f"/run/{vm.name}.qmp", (), refuse_connection)
        return MonitorStatus(monitor, state, "", self._source(vm), QemuBuild("10.0.0", ""), time.time_ns())


async def refuse_connection(*_: Any, **__: Any) -> Any:
    raise AssertionError("the fleet has no monitors")


class Fleet:
    """Hosts and VMs, and random operations on them.

    Attributes:
        hosts: the hosts.
        vms: the VMs that run, by UUID.
        counts: how often each operation was done.
    """

    def __init__(self, folder: Path, deliver: Deliver, *, hosts: int, vms: int, seed: int) -> None:
        self.rng = random.Random(seed)
        self.hosts = [ScriptedHost(f"hv{n}", folder / f"hv{n}", deliver) for n in range(hosts)]
        self.vms: dict[str, ScriptedVm] = {}
        self.counts: dict[str, int] = {}
        self._started = 0
        for _ in range(vms):
            self._add_vm()
        for number in range(hosts):
            self._start_agent(number)
        self._operations: list[tuple[int, Callable[[], None]]] = [
            (20, self._start_vm),
            (10, self._shut_down_vm),
            (10, self._kill_vm),
            (30, self._change_run_state),
            (15, self._plug_disk),
            (25, self._move_vm),
            (10, self._panic_vm),
            (10, self._restart_monitor),
        ]

    async def churn(self, operations: int) -> None:
        """Do random operations. Agents write states, are killed and start again meanwhile."""
        weights, functions = zip(*self._operations, strict=True)
        for number in range(operations):
            (operation,) = self.rng.choices(functions, weights)
            operation()
            self._count(operation.__name__)
            host = self.rng.choice(self.hosts)
            host.now += self.rng.choice((0.0, 1.0, 30.0))
            if host.agent is None:
                self._start_agent(self.hosts.index(host))
            elif number % 7 == 0:
                await host.kill_agent(self.rng)
                self._count("kill_agent")
            elif host.agent.state_publisher is not None and number % 3 == 0:
                await host.agent.state_publisher.build_and_write_changed_states()

    @property
    def firing_alerts(self) -> int:
        """Number of alerts that fire on all hosts."""
        return sum(len(host.agent.alerts.engine.store) for host in self.hosts if host.agent is not None)

    async def settle(self) -> None:
        """Start the dead agents, and let all agents write what is true."""
        for number, host in enumerate(self.hosts):
            if host.agent is None:
                self._start_agent(number)
            await self._write_all(host)
            host.now += AWAY
            host.expire_alerts()
            await self._write_all(host)

    def problems(self, values: dict[str, bytes]) -> list[str]:
        """Return how the topic's values differ from the truth."""
        expected = {f"/hosts/{host.name}/state": {"state": "running"} for host in self.hosts}
        expected |= {f"/hosts/hv{vm.host}/state/vms/{vm.uuid}": vm.facts for vm in self.vms.values()}
        known: dict[str, dict[str, Any]] = {}
        firing = set()
        for key, body in values.items():
            record = orjson.loads(body)
            data = record["data"]
            if record["type"] == "qemu.state.alert":
                firing.add((record["host"], record["vmuuid"], data["alert"], data["state"]))
            elif record["type"] == "qemu.state.vm":
                known[key] = data | {"disks": [disk["device"] for disk in data.get("disks", [])]}
            else:
                known[key] = data
        alerts = {
            (host.name, alert.vm.uuid, alert.name, "firing")
            for host in self.hosts
            for alert in (host.agent.alerts.engine.store if host.agent is not None else ())
        }
        problems = [f"missing {key}" for key in expected.keys() - known.keys()]
        problems += [f"not deleted {key}" for key in known.keys() - expected.keys()]
        problems += [f"missing {alert}" for alert in alerts - firing]
        problems += [f"not deleted {alert}" for alert in firing - alerts]
        for key in expected.keys() & known.keys():
            wrong = {
                name: known[key].get(name) for name, value in expected[key].items() if known[key].get(name) != value
            }
            problems += [f"{key}: {wrong} instead of {expected[key]}"] if wrong else []
        return problems

    async def _write_all(self, host: ScriptedHost) -> None:
        assert host.agent is not None
        assert host.agent.state_publisher is not None
        await host.agent.state_publisher.build_and_write_changed_states()
        while host.agent.state_publisher.pending_count:
            await host.agent.state_publisher.build_and_write_changed_states()

    def _start_agent(self, number: int) -> None:
        vms = [vm for vm in self.vms.values() if vm.host == number]
        self.hosts[number].start_agent(vms)
        for vm in vms:
            if vm.panicked:
                self.hosts[number].emit(vm, "GUEST_PANICKED")

    def _count(self, name: str) -> None:
        self.counts[name] = self.counts.get(name, 0) + 1

    def _any_vm(self) -> tuple[ScriptedVm, ScriptedHost]:
        vm = self.rng.choice(list(self.vms.values()))
        return vm, self.hosts[vm.host]

    def _add_vm(self) -> ScriptedVm:
        self._started += 1
        uuid = str(UUID(int=self.rng.getrandbits(128), version=4))
        vm = self.vms[uuid] = ScriptedVm(uuid, f"vm{self._started}", self.rng.randrange(len(self.hosts)))
        return vm

    def _start_vm(self) -> None:
        vm = self._add_vm()
        self.hosts[vm.host].attach(vm)

    def _shut_down_vm(self) -> None:
        vm, host = self._any_vm()
        del self.vms[vm.uuid]
        host.detach(vm, VmLifecycleChange.GONE, shutdown_reason="guest-shutdown")

    def _kill_vm(self) -> None:
        vm, host = self._any_vm()
        del self.vms[vm.uuid]
        host.detach(vm, VmLifecycleChange.GONE)

    def _change_run_state(self) -> None:
        vm, host = self._any_vm()
        vm.status = self.rng.choice([status for status in ("running", "paused", "debug") if status != vm.status])
        if vm.status == "running" and vm.panicked:
            vm.panicked = False
            host.emit(vm, "RESUME")
        host.poll(vm)

    def _plug_disk(self) -> None:
        vm, host = self._any_vm()
        vm.disks = self.rng.randrange(1, 5)
        host.poll(vm)

    def _panic_vm(self) -> None:
        vm, host = self._any_vm()
        vm.status, vm.panicked = "guest-panicked", True
        host.poll(vm)
        host.emit(vm, "GUEST_PANICKED")

    def _restart_monitor(self) -> None:
        vm, host = self._any_vm()
        host.detach(vm, VmLifecycleChange.GONE)
        host.attach(vm)

    def _move_vm(self) -> None:
        """Migrate a VM. The destination may be seen before or after the source's end."""
        vm, source = self._any_vm()
        if vm.panicked:
            return
        before = ScriptedVm(vm.uuid, vm.name, vm.host, "postmigrate", vm.disks)
        vm.host = self.rng.choice([number for number in range(len(self.hosts)) if number != vm.host])
        vm.status = "running"
        steps: list[Callable[[], object]] = [
            lambda: source.detach(before, VmLifecycleChange.MIGRATED_OUT),
            lambda: self.hosts[vm.host].attach(vm),
        ]
        self.rng.shuffle(steps)
        for step in steps:
            step()
