"""Renders the reports of `qmp-agent doctor` as text. Pure."""

from collections.abc import Iterator, Sequence

from agent.cli.doctor.advice import DIAL_PER_POLL_PREFIX
from agent.cli.doctor.model import MonitorReport, MonitorSocketUse, VmReport, VmWatchState
from agent.host.unix_and_tcp_sockets import AGENT_PROGRAM_NAME


def render_reports(reports: Sequence[VmReport]) -> Iterator[str]:
    """Yield the lines of all reports."""
    for vm in reports:
        yield f"{vm.name}  uuid {vm.uuid or 'none'}  pid {vm.pid}  manager {vm.manager}"
        if vm.same_uuid:
            yield f"  UUID clash: {', '.join(vm.same_uuid)} run with the same UUID"
        if vm.migration_ends:
            yield f"  migration within this host: {', '.join(vm.migration_ends)} has the same UUID"
        yield from _describe_monitors(vm)
        if vm.missing:
            yield f"  {vm.missing}"
        yield from _describe_state(vm)
        yield from _describe_images(vm)
        yield from (f"  {line}" for line in vm.network)
    if not reports:
        yield "no matching QEMU process is visible to this user"


def _describe_monitors(vm: VmReport) -> Iterator[str]:
    for monitor in vm.monitors:
        yield f"  {monitor.address}: {_describe_socket(monitor)}"
        if monitor.missing:
            yield f"    {monitor.missing}"
    if not vm.monitors:
        yield "  no QMP monitor"


def _describe_state(vm: VmReport) -> Iterator[str]:
    match vm.state:
        case VmWatchState.WATCHED:
            yield "  watched"
        case VmWatchState.CONFIGURED:
            yield f"  configured: {vm.entry}"
        case VmWatchState.UNKNOWN:
            yield "  watched or not: run doctor as root to see which process holds the monitor"
        case VmWatchState.UNWATCHED:
            configured = f" although configured ({vm.entry})" if vm.entry else ""
            yield f"  not watched{configured}; to watch it (docs/reference/monitors.md#{vm.section}),"
            yield from (f"    {step}" for step in vm.steps)


def _describe_images(vm: VmReport) -> Iterator[str]:
    for image in vm.images:
        yield f"  image {image.path}: {image.pool or 'pool unknown'}"
        if image.problem:
            yield f"    {image.problem}{'; as root:' if image.steps else ''}"
        yield from (f"      {step}" for step in image.steps)


def _describe_socket(monitor: MonitorReport) -> str:
    holder = f"{monitor.holder} (pid {monitor.holder_pid})" if monitor.holder_pid is not None else ""
    shared = monitor.entry.startswith(DIAL_PER_POLL_PREFIX)
    match monitor.state:
        case MonitorSocketUse.HELD:
            need = _describe_manager_need(monitor) if monitor.holder == AGENT_PROGRAM_NAME and not shared else ""
            return f"held by {holder or 'an unknown process'}{need}"
        case MonitorSocketUse.CONNECTS:
            return f"QEMU connects to it; {f'{holder} listens' if holder else 'no process listens'}"
        case MonitorSocketUse.FREE:
            return f"free{_describe_manager_need(monitor)}"
        case MonitorSocketUse.UNKNOWN:
            return "holder unknown; run doctor as root to see the holder"


def _describe_manager_need(monitor: MonitorReport) -> str:
    """Return a warning if the VM's manager needs a monitor, with the config entry to remove; otherwise an empty text."""
    if not monitor.used_by_manager:
        return ""
    keeps = monitor.entry and not monitor.entry.startswith(DIAL_PER_POLL_PREFIX)
    return f", but the manager needs it{f': remove `{monitor.entry}`' if keeps else ''}"
