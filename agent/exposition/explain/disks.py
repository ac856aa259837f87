"""Finds out whether a VM is slow because of its disks: stalled requests, throttle limits, latency or queues. Pure."""

from collections.abc import Iterator
from statistics import median

from agent.exposition.explain.evidence import CauseFinding, Evidence, finite_number_or_none
from agent.exposition.explain.text_format import (
    format_duration,
    format_latency_text,
    format_list,
    format_percent,
    format_rate,
)
from agent.exposition.history_recorder import HISTORY_COLUMNS
from agent.exposition.rates import LabelValues
from agent.model.metrics.block import BLOCK, BLOCK_DEVICE, BLOCK_TIMED
from agent.model.metrics.block_stall import BLOCK_STALL

THROTTLED_RATIO = 0.9
"""A throttle limit counts as reached if the disk's rate is at least this share of the limit."""
BASELINE_SECONDS = 3600.0
"""Length of the history with which a latency is compared, in seconds."""
RECENT_SECONDS = 60.0
"""Length of the newest part of the history, in seconds. The baseline excludes this part, in which the disk may already be slow."""
MIN_BASELINE_POINTS = 10
"""Minimum number of points in the history for a baseline."""
SLOW_RATIO, MIN_SLOW_SECONDS = 3.0, 0.005
"""A mean latency counts as high from `SLOW_RATIO` times the baseline, but not below `MIN_SLOW_SECONDS`."""
ALWAYS_SLOW_SECONDS = 0.05
"""A mean latency of at least this many seconds counts as high, even without a baseline."""
ALWAYS_SLOW_P99_SECONDS = 0.1
"""A 99th percentile of at least this many seconds counts as high, even if the mean latency is low."""
MIN_P99_OPERATIONS = 100
"""Minimum number of operations in a histogram of the last minute for a meaningful 99th percentile."""
MIN_OPERATIONS = 1.0
"""Minimum number of operations per second for a meaningful mean latency."""
LONG_QUEUE = 16.0
"""A queue counts as long from this mean number of requests in flight, if the mean latency is at least `QUEUE_SECONDS`."""
QUEUE_SECONDS = 0.01
"""Minimum mean latency in seconds of the requests in a long queue."""

_KINDS = ("read", "write")
_LIMITED = {"": _KINDS, "read_": ("read",), "write_": ("write",)}
"""The kinds of operations that a throttle limit counts, by prefix of the limit's name."""


def find_io_stalled(evidence: Evidence) -> Iterator[CauseFinding]:
    """Find disks that complete no request although requests are in flight. QEMU may still answer on its monitor."""
    for labels, values in evidence.latest_values_by_subject(BLOCK_STALL).items():
        seconds = finite_number_or_none(values, "seconds")
        if values.get("state") != "stalled" or seconds is None:
            continue
        figures = {"seconds": seconds, "signs": values.get("signs", "")}
        why = []
        for name, text in (
            ("waiting_threads", "threads of QEMU that wait in the kernel for storage: {:.0f}"),
            ("requests_in_flight", "requests in its virtio queues: {:.0f}"),
        ):
            if number := finite_number_or_none(values, name):
                figures[name] = number
                why.append(text.format(number))
        known = f" ({'; '.join(why)})" if why else ""
        sentence = f"{labels[0]} has requests in flight and has completed none for {format_duration(seconds)}{known}."
        yield CauseFinding(labels[0], sentence, figures)


def find_disk_throttled(evidence: Evidence) -> Iterator[CauseFinding]:
    """Find disks whose rates reach a throttle limit. Disks of one throttle group share their limits."""
    groups: dict[str, list[str]] = {}
    for labels, values in evidence.latest_values_by_subject(BLOCK_DEVICE).items():
        groups.setdefault(str(values.get("throttle_group") or labels[0]), []).append(labels[0])
    for group, devices in groups.items():
        limits = evidence.latest_values_by_subject(BLOCK_DEVICE)[(devices[0],)]
        for prefix, kinds in _LIMITED.items():
            for unit in ("bytes", "operations"):
                limit = finite_number_or_none(limits, f"throttle_{prefix}{unit}_per_second")
                rate = sum(
                    filter(
                        None, (_operation_rate(evidence, device, kind, unit) for device in devices for kind in kinds)
                    )
                )
                if limit and rate >= THROTTLED_RATIO * limit:
                    what = f"{prefix.removesuffix('_')} {unit}".strip()
                    sentence = (
                        f"{format_list(devices)} reached a throttle limit: {format_rate(unit, rate)} of {format_rate(unit, limit)} "
                        f"that the limit of {what} permits ({format_percent(rate / limit)})"
                        f"{f', shared by throttle group {group}' if len(devices) > 1 else ''}."
                    )
                    figures = {"rate_per_second": rate, "limit_per_second": limit, "unit": unit, "devices": devices}
                    yield CauseFinding(devices[0], sentence, figures)


def _operation_rate(evidence: Evidence, device: str, kind: str, unit: str) -> float | None:
    return evidence.counter_rate(BLOCK, f"{kind}_bytes_total" if unit == "bytes" else f"{kind}s_total", (device,))


def _operation_figures(evidence: Evidence, device: str, kind: str) -> tuple[float, float, float]:
    """Return three figures of a disk's reads or writes: operations per second, mean latency in seconds, and mean number in flight."""
    rates = evidence.counter_rates(BLOCK, (device,), (f"{kind}s_total", f"{kind}_seconds_total"))
    operations, in_flight = rates.get(f"{kind}s_total", 0.0), rates.get(f"{kind}_seconds_total", 0.0)
    return operations, in_flight / operations if operations else 0.0, in_flight


def _baseline_latency(evidence: Evidence, kind: str) -> float | None:
    """Return the median latency of the VM's disks in seconds, over the last hour without the last minute; None with too few points."""
    column = HISTORY_COLUMNS.index(f"{kind}_latency")
    points = evidence.view.history_recorder.history.points(BASELINE_SECONDS)
    old = [values[column] for time, values in points if time <= evidence.now - RECENT_SECONDS]
    # Leave out unknown values (NaN), and zeros, which are times without requests.
    known = [value for value in old if value > 0]
    return median(known) if len(known) >= MIN_BASELINE_POINTS else None


def _p99_latency(evidence: Evidence, device: str, kind: str) -> float | None:
    """Return the 99th percentile of a disk's latency in seconds; None without a histogram, or with too few operations."""
    windows = evidence.view.latency_windows
    summary = windows.quantiles_of(device).get(kind, {}) if windows is not None else {}
    return summary.get("p99") if summary.get("operations", 0) >= MIN_P99_OPERATIONS else None


def find_disk_slow(evidence: Evidence) -> Iterator[CauseFinding]:
    """Find disks whose requests take much longer than in the last hour, or longer than a limit."""
    for kind in _KINDS:
        baseline = _baseline_latency(evidence, kind)
        for labels in evidence.latest_values_by_subject(BLOCK):
            operations, seconds, _ = _operation_figures(evidence, labels[0], kind)
            if operations < MIN_OPERATIONS:
                continue
            p99 = _p99_latency(evidence, labels[0], kind)
            is_slower = baseline is not None and seconds >= SLOW_RATIO * baseline and seconds >= MIN_SLOW_SECONDS
            if not is_slower and seconds < ALWAYS_SLOW_SECONDS and (p99 is None or p99 < ALWAYS_SLOW_P99_SECONDS):
                continue
            usual = (
                f", {seconds / baseline:.2g} times the {format_latency_text(baseline)} of the last hour"
                if is_slower and baseline is not None
                else ""
            )
            slowest = f", and 1 of 100 {format_latency_text(p99)} or longer" if p99 is not None else ""
            rate = format_rate(f"{kind}s", operations)
            sentence = (
                f"A {kind} of {labels[0]} takes {format_latency_text(seconds)} on average{usual}{slowest}, at {rate}."
            )
            figures = {"latency_seconds": seconds, "operations_per_second": operations, "operation": kind}
            figures |= {"usual_seconds": baseline} if baseline is not None else {}
            figures |= {"p99_seconds": p99} if p99 is not None else {}
            yield CauseFinding(labels[0], sentence, figures)


def slow_disks_by_pool(evidence: Evidence) -> Iterator[tuple[LabelValues, CauseFinding]]:
    """Yield the pool's label values and the finding for each slow disk with a known pool."""
    slow = list(find_disk_slow(evidence))
    for pool, devices, _ in evidence.pools_of_disks() if slow else ():
        yield from ((pool, found) for found in slow if found.subject in devices)


def find_disk_queue(evidence: Evidence) -> Iterator[CauseFinding]:
    """Find disks with long queues of slow requests."""
    for labels in evidence.latest_values_by_subject(BLOCK):
        both = [_operation_figures(evidence, labels[0], kind) for kind in _KINDS]
        operations, in_flight = sum(row[0] for row in both), sum(row[2] for row in both)
        measured = max(
            (
                (finite_number_or_none(values, "read_queue_depth") or 0)
                + (finite_number_or_none(values, "write_queue_depth") or 0)
                for timed, values in evidence.latest_values_by_subject(BLOCK_TIMED).items()
                if timed[0] == labels[0]
            ),
            default=0.0,
        )
        depth = max(in_flight, measured)
        if depth >= LONG_QUEUE and operations and in_flight / operations >= QUEUE_SECONDS:
            sentence = (
                f"{labels[0]} has {depth:.0f} requests in flight on average, and completes {format_rate('requests', operations)}: "
                f"the guest asks for more than the storage does."
            )
            yield CauseFinding(labels[0], sentence, {"queue_depth": depth, "operations_per_second": operations})
