"""The QEMU processes of each VM UUID. Pure.

Several processes can have one UUID: source and destination of a migration within the host, a VM before and after a restart, or two
clones. Each process has its own alerts. One process of each UUID is the primary. A new primary takes over the alerts that are still
true, unless the new primary is a clone.
"""

from collections.abc import Callable, Iterator
from itertools import count

from agent.alerts.rules.process_state import VmProcessState
from agent.model.record import Vm

IsProcessAlive = Callable[[int], bool]
"""Returns whether the QEMU process with a pid is alive."""


class VmProcessRegistry:
    """All processes to which the agent is attached, or was attached until `REATTACH_SECONDS` ago."""

    def __init__(self, is_alive: IsProcessAlive) -> None:
        self._is_alive = is_alive
        self._by_uuid: dict[str, list[VmProcessState]] = {}
        self._owners = count(1)

    def __iter__(self) -> Iterator[VmProcessState]:
        return iter([state for states in self._by_uuid.values() for state in states])

    def __contains__(self, uuid: object) -> bool:
        return uuid in self._by_uuid

    def shared_uuids(self) -> list[str]:
        """Return the UUIDs that several processes have."""
        return [uuid for uuid, states in self._by_uuid.items() if len(states) > 1]

    def processes_with_uuid(self, uuid: str) -> list[VmProcessState]:
        """Return the processes of a UUID, the primary first."""
        return self._by_uuid.get(uuid, [])

    def find_attached_process_of_vm(self, vm: Vm) -> VmProcessState | None:
        """Return the process of this VM; None if the agent is not attached to the VM."""
        for state in self._by_uuid.get(vm.uuid, ()):
            if state.detached_at is None and (state.vm is vm or state.vm == vm):
                return state
        return None

    def find_active_process_of_vm(self, vm: Vm) -> VmProcessState | None:
        """Return the process of this VM; None if the agent is not attached to the VM or does not evaluate the disks of this process."""
        state = self.find_attached_process_of_vm(vm)
        return state if state is not None and state.is_active else None

    def attach(self, vm: Vm, pid: int | None) -> VmProcessState:
        """Handle a VM that the agent has attached to, and return its process.

        Add a new process if no known process matches.

        Args:
            vm: The VM.
            pid: The process id; None if unknown.
        """
        states = self._by_uuid.setdefault(vm.uuid, [])
        state = next((state for state in states if state.is_process_of_vm(vm, pid)), None)
        if state is None:
            is_second = any(other.detached_at is None for other in states)
            state = self.add(vm, pid, instance=vm.monitor if is_second else "")
        else:
            state.vm, state.pid = vm, pid if pid is not None else state.pid
            state.detached_at, state.ended_permanently, state.has_run_state = None, False, False
        return state

    def add(self, vm: Vm, pid: int | None, *, instance: str) -> VmProcessState:
        """Add a process and return it; see `VmProcessState` for the arguments."""
        states = self._by_uuid.setdefault(vm.uuid, [])
        state = VmProcessState(vm, pid, next(self._owners), instance, is_active=not states)
        states.append(state)
        return state

    def remove(self, state: VmProcessState) -> None:
        """Remove a process."""
        states = self._by_uuid[state.vm.uuid]
        states.remove(state)
        if states:
            states[0].is_active = True
        else:
            del self._by_uuid[state.vm.uuid]

    def next_primary(self, uuid: str) -> VmProcessState | None:
        """Return the process to make the primary of a UUID now; None if the primary does not change.

        The destination of a migration becomes the primary when its guest runs, and the migration has stopped the source's guest. Until
        then, the source writes to the disks. If the migration fails, the source's guest continues.

        Two clones keep their own alerts, even if one clone is paused or was restored from a file. In QEMU, a restore from a file is an
        incoming migration.
        """
        if uuid not in self._by_uuid:
            return None
        primary, *others = self._by_uuid[uuid]
        candidates = [state for state in others if state.detached_at is None]
        running = next((state for state in candidates if state.run.running), None)
        if primary.detached_at is not None:
            successor = running or next(iter(candidates), None)
            may_run = successor is not None and successor.pid is not None and not self.has_ended(primary, successor)
            return successor if primary.pid is None or not may_run else None
        if running is None or primary.run.running is not False:
            return None
        status = primary.run.status
        has_migrated = status == "postmigrate" or (status == "finish-migrate" and running.run.was_incoming)
        return running if has_migrated else None

    def has_ended(self, state: VmProcessState, successor: VmProcessState) -> bool:
        """Return whether a detached process has certainly ended.

        A process has ended if the pid is dead, or if the guest shut down or migrated away. A process has also ended if its monitor now
        belongs to `successor`, another process with the same UUID.
        """
        if state.detached_at is None:
            return False
        is_dead = state.pid is not None and not self._is_alive(state.pid)
        return is_dead or state.ended_permanently or state.vm.monitor == successor.vm.monitor

    def make_primary(self, state: VmProcessState) -> None:
        """Make a process the primary of its UUID."""
        states = self._by_uuid[state.vm.uuid]
        before = states[0]
        states.remove(state)
        states.insert(0, state)
        before.is_active, state.is_active = False, True
        before.instance, state.instance = state.instance or before.vm.monitor, before.instance

    def processes_with_running_guest(self, uuid: str) -> list[VmProcessState]:
        """Return the attached processes of a UUID whose guest is known to run."""
        return [state for state in self.processes_with_uuid(uuid) if state.detached_at is None and state.run.running]

    def runs_at_most_one_guest(self, uuid: str) -> bool:
        """Return whether at most one process of a UUID runs its guest. False if a process is detached or its run state is unknown."""
        are_known = all(state.has_run_state and state.detached_at is None for state in self.processes_with_uuid(uuid))
        return are_known and len(self.processes_with_running_guest(uuid)) < 2

    def running_processes_sharing_uuid(self, uuid: str) -> list[VmProcessState]:
        """Return the running processes of a UUID if several guests certainly run at the same time; else an empty list.

        A clash is certain if each guest was polled as running after the last guest began to run. A migration never meets this condition,
        because its source stops before its destination runs.
        """
        running = self.processes_with_running_guest(uuid)
        last_start_ns = max((state.run.running_since_ns for state in running), default=0)
        return running if len(running) > 1 and all(state.run.last_ran_ns > last_start_ns for state in running) else []
