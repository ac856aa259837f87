"""Which of several ways to one VM counts. Pure.

A migration within the host has two processes of one UUID, and one process can have two monitors.
"""

from agent.model.record import Vm


class ActiveInstances:
    """The VMs that are attached, by UUID, with whether each runs; None where that is not known yet."""

    def __init__(self) -> None:
        self._lives: dict[str, dict[Vm, bool | None]] = {}

    def attached(self, vm: Vm) -> None:
        """One more is there."""
        self._lives.setdefault(vm.uuid, {})[vm] = None

    def gone(self, vm: Vm) -> None:
        """One is there no more."""
        lives = self._lives.get(vm.uuid, {})
        lives.pop(vm, None)
        if not lives:
            self._lives.pop(vm.uuid, None)

    def runs(self, vm: Vm, running: bool) -> None:  # noqa: FBT001 - it is the fact itself
        """Take note whether one runs."""
        lives = self._lives.get(vm.uuid, {})
        if vm in lives:
            lives[vm] = running

    def heir(self, uuid: str, holder: Vm | None) -> Vm | None:
        """Return who counts from here on instead of the holder; None where that stays as it is.

        The destination of a migration does not count before it runs and its source does not: until then it is the source that
        writes, and if the migration fails, it is the source that is left.
        """
        lives = self._lives.get(uuid, {})
        running = next((vm for vm, runs in lives.items() if runs), None)
        if holder not in lives:
            return running or next(iter(lives), None)
        return running if lives[holder] is False else None
