"""Renders the reports of `qmp-agent doctor` as text. Pure."""

from collections.abc import Iterator, Sequence

from agent.cli.doctor.model import MonitorReport, SocketState, VmReport, VmState


def render(reports: Sequence[VmReport]) -> Iterator[str]:
    """Yield the lines of all reports."""
    for vm in reports:
        yield f"{vm.name}  uuid {vm.uuid or 'none'}  pid {vm.pid}  manager {vm.manager}"
        if vm.same_uuid:
            yield f"  UUID clash: {', '.join(vm.same_uuid)} run with the same UUID"
        if vm.migration_ends:
            yield f"  migration within this host: {', '.join(vm.migration_ends)} has the same UUID"
        yield from _monitor_lines(vm)
        if vm.missing:
            yield f"  {vm.missing}"
        yield from _state_lines(vm)
        yield from _image_lines(vm)
    if not reports:
        yield "no matching QEMU process is visible to this user"


def _monitor_lines(vm: VmReport) -> Iterator[str]:
    for monitor in vm.monitors:
        yield f"  {monitor.address}: {_describe_socket(monitor)}"
        if monitor.missing:
            yield f"    {monitor.missing}"
    if not vm.monitors:
        yield "  no QMP monitor"


def _state_lines(vm: VmReport) -> Iterator[str]:
    match vm.state:
        case VmState.WATCHED:
            yield "  watched"
        case VmState.CONFIGURED:
            yield f"  configured: {vm.entry}"
        case VmState.UNWATCHED:
            configured = f" although configured ({vm.entry})" if vm.entry else ""
            yield f"  not watched{configured}; to watch it (docs/monitors.md#{vm.section}),"
            yield from (f"    {step}" for step in vm.steps)


def _image_lines(vm: VmReport) -> Iterator[str]:
    for image in vm.images:
        yield f"  image {image.path}: {image.pool or 'pool unknown'}"
        if image.problem:
            yield f"    {image.problem}{'; as root:' if image.steps else ''}"
        yield from (f"      {step}" for step in image.steps)


def _describe_socket(monitor: MonitorReport) -> str:
    holder = f"{monitor.holder} (pid {monitor.holder_pid})" if monitor.holder_pid is not None else ""
    match monitor.state:
        case SocketState.HELD:
            return f"held by {holder or 'an unknown process'}"
        case SocketState.CONNECTS:
            return f"QEMU connects to it; {f'{holder} listens' if holder else 'no process listens'}"
        case SocketState.FREE:
            return "free, but the manager needs it" if monitor.used_by_manager else "free"
        case SocketState.UNKNOWN:
            return "holder unknown; run doctor as root to see it"
