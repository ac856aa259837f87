"""Renders the metrics of all VMs in Prometheus' text format 0.0.4, from the stored samples. Pure.

The label texts of a disk or another subject are rendered once, and joined with the values at each scrape. A scrape sends no QMP command.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import cache
from itertools import accumulate, chain

from agent.exposition.rates import ValuesBySubject
from agent.exposition.snapshot import Snapshot, VmView, escape_label
from agent.model.family import Family, Field, FieldKind, FieldValues
from agent.model.metrics import FAMILIES
from agent.model.metrics.identity import IDENTITY
from agent.session.shared_types import MonitorState

LabeledValues = tuple[str, FieldValues]
"""The labels of a disk or another subject in Prometheus' text format, without braces, and its values by field name."""


def render_metrics(snapshot: Snapshot) -> str:
    """Return the text of all metrics of all VMs."""
    return "".join(render_chunks(snapshot))


def render_chunks(snapshot: Snapshot) -> Iterator[str]:
    """Return the text of all metrics of all VMs in chunks.

    All values are from the time of the call, even if the caller reads the chunks later. Stored samples are never modified.
    """
    views = [view for _, view in snapshot.one_view_per_uuid()]
    families = [
        (family, [(view, polls.current) for view in views if (polls := view.polls.get(family.name)) is not None])
        for family in FAMILIES
    ]
    host = {name: dict(subjects) for name, subjects in snapshot.host_samples.items()}
    samples = (
        text
        for family, subjects in families
        for text in _render_family(
            family, [*_label_vm_values(family, subjects), *_label_host_values(family, host.get(family.name, {}))]
        )
    )
    return chain(_render_vm_metrics(views), _render_monitor_metrics(snapshot), samples)


LineRenderer = Callable[[Sequence[LabeledValues]], list[str]]
"""Function that returns the lines of one metric for all subjects, such as all disks."""


def _label_vm_values(family: Family, subjects_by_vm: list[tuple[VmView, ValuesBySubject]]) -> Iterator[LabeledValues]:
    return (row for view, subjects in subjects_by_vm for row in view.values_with_label_text(family, subjects))


def _label_host_values(family: Family, subjects: ValuesBySubject) -> Iterator[LabeledValues]:
    for labels, values in subjects.items():
        subject_labels = zip(family.labels, labels, strict=True)
        yield ",".join(f'{name}="{escape_label(value)}"' for name, value in subject_labels), values


def _render_family(family: Family, rows: list[LabeledValues]) -> Iterator[str]:
    for header, render_lines in _metrics_of_family(family) if rows else ():
        if lines := render_lines(rows):
            yield header + "".join(lines)


@cache
def _metrics_of_family(family: Family) -> list[tuple[str, LineRenderer]]:
    """Return the header and the line renderer of each metric of a family. The result is cached between scrapes."""
    return [
        (
            _render_header(
                family.metric_name(field), _prometheus_type(field), f"{field.help} ({family.source}: {field.path})"
            ),
            _RENDERERS.get(field.kind, _number_renderer)(family.metric_name(field), field.name),
        )
        for field in family.exported_fields()
    ]


def _prometheus_type(field: Field) -> str:
    return field.kind.value if field.kind in (FieldKind.COUNTER, FieldKind.HISTOGRAM) else "gauge"


def _number_renderer(name: str, key: str) -> LineRenderer:
    # the unary plus turns True into 1
    return lambda rows: [f"{name}{{{labels}}} {+values[key]!r}\n" for labels, values in rows if key in values]


def _state_renderer(name: str, key: str) -> LineRenderer:
    return lambda rows: [
        f'{name}{{{labels},{key}="{escape_label(values[key])}"}} 1\n' for labels, values in rows if key in values
    ]


def _histogram_renderer(name: str, key: str) -> LineRenderer:
    return lambda rows: [
        line for labels, values in rows if key in values for line in _render_histogram(name, labels, values[key])
    ]


def _render_histogram(name: str, labels: str, value: FieldValues) -> Iterator[str]:
    counts = list(accumulate(value["counts"]))
    for bound, count in zip((*map(repr, value["boundaries_seconds"]), "+Inf"), counts, strict=True):
        yield f'{name}_bucket{{{labels},le="{bound}"}} {count}\n'
    if "sum_seconds" in value:
        yield f"{name}_sum{{{labels}}} {value['sum_seconds']!r}\n"
    yield f"{name}_count{{{labels}}} {counts[-1]}\n"


_RENDERERS = {
    FieldKind.STATE: _state_renderer,
    FieldKind.NAME: _state_renderer,
    FieldKind.HISTOGRAM: _histogram_renderer,
}


def _render_header(name: str, kind: str, text: str) -> str:
    text = text.replace("\\", r"\\")
    return f"# HELP {name} {text}\n# TYPE {name} {kind}\n"


def _render_metric(name: str, kind: str, text: str, rows: Iterable[tuple[str, float]]) -> str:
    """Return the text of one metric.

    Args:
        name: the metric's name.
        kind: the metric's type, such as `gauge`.
        text: the help text.
        rows: the labels in the text format, and the value, of each series.
    """
    return _render_header(name, kind, text) + "".join([f"{name}{{{labels}}} {+value!r}\n" for labels, value in rows])


def _render_vm_metrics(views: list[VmView]) -> Iterator[str]:
    """Yield the metrics of each VM that are not fields of a family."""
    if not views:
        return
    yield _render_metric(
        "qemu_vm_info",
        "gauge",
        "1 for each attached VM. The labels describe the VM.",
        [(_vm_info_labels(view), 1) for view in views],
    )
    up = [(view.label_text, view.status.state is MonitorState.UP) for view in views]
    yield _render_metric(
        "qemu_vm_up", "gauge", "1 if the VM answers in time, 0 if it is stalled. A VM that is gone has no series.", up
    )
    dropped = [(view.label_text, total) for view in views if (total := view.dropped_subjects.total())]
    if dropped:
        text = "Number of disks, vCPUs, jobs and other subjects that have no series, because the VM exceeds its limits (config: limits)."
        yield _render_metric("qemu_vm_series_limit_dropped_subjects", "gauge", text, dropped)
    responses = [(view.label_text, view.last_response_ns / 1e9) for view in views if view.last_response_ns]
    if responses:
        yield _render_metric(
            "qemu_vm_last_response_timestamp_seconds",
            "gauge",
            "Time of the VM's last response, in seconds since the epoch.",
            responses,
        )
    guest_responses = [(view.label_text, view.guest_response_ns / 1e9) for view in views if view.guest_response_ns]
    if guest_responses:
        yield _render_metric(
            "qemu_guest_agent_last_response_timestamp_seconds",
            "gauge",
            "Time of the last values from the VM's guest agent, in seconds since the epoch. It does not change while the guest's file "
            "systems are frozen.",
            guest_responses,
        )
    degraded = [
        (f'{view.label_text},collector="{escape_label(collector)}"', 1)
        for view in views
        for collector, _ in view.status.degraded
    ]
    if degraded:
        text = "1 for each collector that fails for a VM because of QEMU's replies. The agent runs such a collector less often."
        yield _render_metric("qmp_agent_collector_degraded", "gauge", text, degraded)
    events = [
        (f'{view.label_text},event="{name}"', count) for view in views for name, count in sorted(view.events.items())
    ]
    if events:
        text = "Total number of events since the VM was attached. This is a lower bound, because QEMU coalesces some events."
        yield _render_metric("qemu_vm_events_total", "counter", text, events)


def _render_monitor_metrics(snapshot: Snapshot) -> Iterator[str]:
    """Yield the metric with the state of each monitor, including monitors without a VM."""
    # Two monitors may have the same name: a stalled monitor, and a new socket at the same path.
    states = {
        f'monitor="{escape_label(status.monitor.name)}",state="{status.state.value}"': 1
        for status in snapshot.monitors.values()
    }
    if states:
        text = "1 for each monitor and its current state."
        yield _render_metric("qmp_agent_monitor_state", "gauge", text, [*states.items()])


def _vm_info_labels(view: VmView) -> str:
    build = view.status.build
    version, package = (build.version, build.package) if build is not None else ("", "")
    monitor = view.status.vm.monitor if view.status.vm is not None else ""
    about = view.polls[IDENTITY.name].current.get((), {}) if IDENTITY.name in view.polls else {}
    labels = {"qemu_version": version, "qemu_package": package, "monitor": monitor}
    labels |= {name: about.get(name, "") for name in ("machine", "accelerator", "pid")} | about.get("labels", {})
    return ",".join((view.label_text, *(f'{name}="{escape_label(value)}"' for name, value in labels.items() if value)))
