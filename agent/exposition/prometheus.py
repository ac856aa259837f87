"""The guests' series in Prometheus' text format 0.0.4, out of the snapshot. Pure.

Labels are made into text when a subject is first shown; a scrape joins them with numbers. No question goes to any QEMU here.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import cache
from itertools import accumulate, chain

from agent.exposition.rates import Subjects
from agent.exposition.snapshot import Snapshot, VmView, escape
from agent.model.family import Family, Field, Kind, Values
from agent.model.metrics import FAMILIES
from agent.model.metrics.about import ABOUT
from agent.session.api import MonitorState

Row = tuple[str, Values]
"""A subject: its labels in the text format, without braces, and its values."""


def render(snapshot: Snapshot) -> str:
    """Return the text of all series of all VMs."""
    return "".join(pieces(snapshot))


def pieces(snapshot: Snapshot) -> Iterator[str]:
    """Return the text of all series in pieces, the figures all of one instant however long it takes: what samples hold is never changed."""
    views = [view for _, view in snapshot.views()]
    found = [
        (family, [(view, pair.now) for view in views if (pair := view.pairs.get(family.name)) is not None])
        for family in FAMILIES
    ]
    figures = (text for family, held in found for text in _family(family, held))
    return chain(_vm_series(views), _monitors(snapshot), figures)


Lines = Callable[[Sequence[Row]], list[str]]
"""Makes the lines of one metric out of all subjects."""


def _family(family: Family, held: list[tuple[VmView, Subjects]]) -> Iterator[str]:
    subjects = [subject for view, now in held for subject in view.named(family, now)]
    for head, lines in _columns(family) if subjects else ():
        if made := lines(subjects):
            yield head + "".join(made)


@cache
def _columns(family: Family) -> list[tuple[str, Lines]]:
    """Return what is the same at each scrape of each field of a family: the metric's head, and what makes its lines."""
    return [
        (
            _head(family.series(field), _type(field), f"{field.help} ({family.source}: {field.path})"),
            _RENDERED.get(field.kind, _plain)(family.series(field), field.name),
        )
        for field in family.exported_fields()
    ]


def _type(field: Field) -> str:
    return field.kind.value if field.kind in (Kind.COUNTER, Kind.HISTOGRAM) else "gauge"


def _plain(name: str, key: str) -> Lines:
    # + makes True 1
    return lambda subjects: [f"{name}{{{labels}}} {+values[key]!r}\n" for labels, values in subjects if key in values]


def _states(name: str, key: str) -> Lines:
    return lambda subjects: [
        f'{name}{{{labels},{key}="{escape(values[key])}"}} 1\n' for labels, values in subjects if key in values
    ]


def _histograms(name: str, key: str) -> Lines:
    return lambda subjects: [
        line for labels, values in subjects if key in values for line in _histogram(name, labels, values[key])
    ]


def _histogram(name: str, labels: str, value: Values) -> Iterator[str]:
    counts = list(accumulate(value["counts"]))
    for bound, count in zip((*map(repr, value["boundaries_seconds"]), "+Inf"), counts, strict=True):
        yield f'{name}_bucket{{{labels},le="{bound}"}} {count}\n'
    if "sum_seconds" in value:
        yield f"{name}_sum{{{labels}}} {value['sum_seconds']!r}\n"
    yield f"{name}_count{{{labels}}} {counts[-1]}\n"


_RENDERED = {Kind.STATE: _states, Kind.NAME: _states, Kind.HISTOGRAM: _histograms}


def _head(name: str, kind: str, text: str) -> str:
    text = text.replace("\\", r"\\")
    return f"# HELP {name} {text}\n# TYPE {name} {kind}\n"


def _metric(name: str, kind: str, text: str, rows: Iterable[tuple[str, float]]) -> str:
    """Return a metric, given the labels of its series, and their values."""
    return _head(name, kind, text) + "".join([f"{name}{{{labels}}} {+value!r}\n" for labels, value in rows])


def _vm_series(views: list[VmView]) -> Iterator[str]:
    """Yield what the sessions themselves know."""
    if not views:
        return
    yield _metric("qemu_vm_info", "gauge", "A VM that is watched, for joins.", [(_info(view), 1) for view in views])
    up = [(view.labels, view.status.state is MonitorState.UP) for view in views]
    yield _metric(
        "qemu_vm_up", "gauge", "Whether the VM answers in time; 0 is stalled. A VM that is gone has no series.", up
    )
    dropped_subjects = [(view.labels, total) for view in views if (total := view.dropped_subjects.total())]
    if dropped_subjects:
        text = "Disks, vCPUs, jobs and the like that have no series, because the VM has too many (config: limits)."
        yield _metric("qemu_vm_series_limit_dropped_subjects", "gauge", text, dropped_subjects)
    replied = [(view.labels, view.last_response_ns / 1e9) for view in views if view.last_response_ns]
    if replied:
        yield _metric(
            "qemu_vm_last_response_timestamp_seconds",
            "gauge",
            "When the VM last answered a question or told a figure.",
            replied,
        )
    events = [(f'{view.labels},event="{name}"', count) for view in views for name, count in sorted(view.events.items())]
    if events:
        text = "Events since the VM was attached; a lower bound, since QEMU coalesces some."
        yield _metric("qemu_vm_events_total", "counter", text, events)


def _monitors(snapshot: Snapshot) -> Iterator[str]:
    """Yield the state of each monitor, whether a VM was met there or not."""
    states = [
        (f'monitor="{escape(status.monitor.name)}",state="{status.state.value}"', 1)
        for status in snapshot.monitors.values()
    ]
    if states:
        yield _metric("qmp_agent_monitor_state", "gauge", "1 for each monitor and the state it is in.", states)


def _info(view: VmView) -> str:
    build = view.status.build
    version, package = (build.version, build.package) if build is not None else ("", "")
    monitor = view.status.vm.monitor if view.status.vm is not None else ""
    about = view.pairs[ABOUT.name].now.get((), {}) if ABOUT.name in view.pairs else {}
    labels = {"qemu_version": version, "qemu_package": package, "monitor": monitor}
    labels |= {name: about.get(name, "") for name in ("machine", "accelerator", "pid")} | about.get("labels", {})
    return ",".join((view.labels, *(f'{name}="{escape(value)}"' for name, value in labels.items() if value)))
