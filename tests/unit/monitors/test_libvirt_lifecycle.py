"""libvirt's lifecycle events: migration phases, the end of a VM, and the state of libvirtd."""

import pytest

from agent.monitors.libvirt.discovery import DaemonState
from agent.monitors.libvirt.lifecycle import RESUMED, STARTED, STOPPED, SUSPENDED, LibvirtMigrationPhase, LifecycleEvent
from agent.qmp.errors import ConnectPermissionError, QmpError, TransportLostError

NONE, ARRIVING, ARRIVED = LibvirtMigrationPhase


@pytest.mark.parametrize(
    ("before", "event", "after"),
    [
        (NONE, (STARTED, 0), NONE),
        (NONE, (RESUMED, 0), NONE),
        (NONE, (STARTED, 1), ARRIVING),
        (ARRIVING, (SUSPENDED, 0), ARRIVED),
        (ARRIVING, (RESUMED, 1), ARRIVED),
        (ARRIVING, (SUSPENDED, 5), ARRIVING),
        (ARRIVED, (RESUMED, 0), ARRIVED),
        (ARRIVED, (STOPPED, 1), NONE),
        (ARRIVED, (STARTED, 1), ARRIVING),
    ],
)
def test_a_migration_phase_follows_the_lifecycle_events(
    before: LibvirtMigrationPhase, event: tuple[int, int], after: LibvirtMigrationPhase
) -> None:
    assert before.after(LifecycleEvent("uuid", *event)) is after


@pytest.mark.parametrize(
    ("detail", "migrated_away", "reason"),
    [
        (1, False, "the domain was destroyed"),
        (3, True, "the domain has migrated to another host"),
        (4, True, "the domain was saved"),
        (99, False, "the domain was stopped"),
    ],
)
def test_only_a_migrated_or_saved_domain_continues_elsewhere(detail: int, reason: str, *, migrated_away: bool) -> None:
    event = LifecycleEvent("uuid", STOPPED, detail)
    assert (event.is_migrated_or_saved, event.stop_reason) == (migrated_away, reason)
    assert not LifecycleEvent("uuid", SUSPENDED, detail).is_migrated_or_saved


@pytest.mark.parametrize(
    ("state", "error", "connected", "after"),
    [
        (DaemonState.CONNECTING, TransportLostError("x"), False, DaemonState.LOST),
        (DaemonState.CONNECTING, ConnectPermissionError("x"), False, DaemonState.DENIED),
        (DaemonState.HUNG, TransportLostError("x"), False, DaemonState.HUNG),
        (DaemonState.HUNG, ConnectPermissionError("x"), False, DaemonState.DENIED),
        (DaemonState.HUNG, TransportLostError("x"), True, DaemonState.LOST),
        (DaemonState.REACHABLE, TransportLostError("x"), True, DaemonState.LOST),
    ],
)
def test_the_state_of_libvirtd_after_a_failure(
    state: DaemonState, error: QmpError, after: DaemonState, *, connected: bool
) -> None:
    assert state.after_failure(error, connected=connected) is after
