"""The agent's metrics of itself, `qmp_agent_*`, with prometheus_client.

Counters are incremented where things happen. For everything else, each part of the agent has a collector that reads it at each scrape.
"""

import asyncio
from collections import Counter as Tally
from collections.abc import Callable, Iterator, Mapping
from functools import partial

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, disable_created_metrics, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.platform_collector import PlatformCollector
from prometheus_client.process_collector import ProcessCollector
from prometheus_client.registry import Collector

from agent import __version__
from agent.alerts.store import AlertStore
from agent.config.reload import Reload
from agent.delivery.pipeline import DeliveryPipeline
from agent.delivery.queue import RecordQueue
from agent.exposition.snapshot import Snapshot
from agent.http.server import HttpEndpoint
from agent.session.api import MonitorState

# A `_created` series beside each counter would double the text, and Prometheus does not use it.
disable_created_metrics()  # type: ignore[no-untyped-call]  # the library has no type for it

_RESPONSE_BUCKETS = (0.0005, 0.001, 0.002, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 1, 5)


class SelfMetrics:
    """The registry of one agent.

    Attributes:
        registry: the registry; `register` adds collectors that read parts of the agent at each scrape.
        collector_runs: runs by collector and outcome. A plain counter, because the library's counter takes a lock at every poll.
        response_seconds: how long QEMU took to answer one write.
        events_dropped: events dropped before they became records, by reason.
        messages_skipped: skipped messages of QEMU, by reason.
        connections_refused: refused connections to `listen` addresses.
        scrape_seconds: duration of the last scrape.
    """

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.collector_runs: Tally[tuple[str, str]] = Tally()
        ProcessCollector(namespace="qmp_agent", registry=self.registry)
        PlatformCollector(registry=self.registry)
        gauge, counter = partial(Gauge, registry=self.registry), partial(Counter, registry=self.registry)
        build = gauge("qmp_agent_build_info", "A constant 1 with the version of the agent as label.", ["version"])
        build.labels(__version__).set(1)
        self.register(RunCollector(self.collector_runs), RuntimeCollector())
        self.response_seconds = Histogram(
            "qmp_agent_qmp_response_seconds",
            "Time QEMU took to answer all commands of one write, in seconds.",
            buckets=_RESPONSE_BUCKETS,
            registry=self.registry,
        )
        self.events_dropped = counter(
            "qmp_agent_events_dropped", "Total number of events dropped before they became records.", ["reason"]
        )
        self.messages_skipped = counter(
            "qmp_agent_messages_skipped",
            "Total number of skipped messages of QEMU; the reason is unreadable, oversized, or stray for a reply without a command.",
            ["reason"],
        )
        self.connections_refused = counter(
            "qmp_agent_connections_refused",
            "Total number of refused connections to a `listen` address; the reason is user, limit or process.",
            ["address", "reason"],
        )
        self.scrape_seconds = gauge("qmp_agent_scrape_duration_seconds", "Duration of the last scrape in seconds.")

    def register(self, *collectors: Collector) -> None:
        """Add collectors to the registry."""
        for collector in collectors:
            self.registry.register(collector)

    def dropped_by_reason(self) -> dict[str, float]:
        """Return the number of events dropped before they became records, by reason."""
        (metric,) = self.events_dropped.collect()
        return {s.labels["reason"]: s.value for s in metric.samples if s.name.endswith("_total")}

    def render(self) -> bytes:
        """Return all metrics in the text format."""
        return generate_latest(self.registry)


class RunCollector(Collector):
    """Reads how often collectors ran."""

    def __init__(self, runs: Mapping[tuple[str, str], int]) -> None:
        self._runs = runs

    def collect(self) -> Iterator[Metric]:
        """Yield the current values."""
        runs = CounterMetricFamily(
            "qmp_agent_collector_runs", "Total number of collector runs by outcome.", labels=["collector", "outcome"]
        )
        for labels, count in self._runs.items():
            runs.add_metric(labels, count)
        yield runs


class RuntimeCollector(Collector):
    """Reads the event loop."""

    def collect(self) -> Iterator[Metric]:
        """Yield the current values."""
        text = "Number of asyncio tasks; each monitor has several."
        yield GaugeMetricFamily("qmp_agent_asyncio_tasks", text, value=len(asyncio.all_tasks()))


class RecordCollector(Collector):
    """Reads how many records were published."""

    def __init__(self, published: Mapping[str, int]) -> None:
        self._published = published

    def collect(self) -> Iterator[Metric]:
        """Yield the current values."""
        records = CounterMetricFamily(
            "qmp_agent_records", "Total number of records published by kind.", labels=["kind"]
        )
        for kind, count in self._published.items():
            records.add_metric([kind], count)
        yield records


class DeliveryCollector(Collector):
    """Reads the sink, the queues and the journal."""

    def __init__(self, delivery: DeliveryPipeline) -> None:
        self._delivery = delivery

    def collect(self) -> Iterator[Metric]:
        """Yield the current values."""
        delivery = self._delivery
        supervisor = delivery.supervisor
        up = supervisor.error is None
        yield GaugeMetricFamily("qmp_agent_sink_up", "Whether the sink accepts records: 1 or 0.", value=up)
        yield CounterMetricFamily(
            "qmp_agent_records_delivered", "Total number of records delivered.", value=supervisor.delivered
        )
        yield CounterMetricFamily(
            "qmp_agent_sink_reconnects",
            "Total number of reconnects of the sink after a failure.",
            value=supervisor.reconnects,
        )
        dropped = CounterMetricFamily(
            "qmp_agent_records_dropped",
            "Total number of records dropped by queue and reason.",
            labels=["queue", "reason"],
        )
        for (queue_name, reason), count in delivery.drops.totals.items():
            dropped.add_metric([queue_name, reason], count)
        yield dropped
        for name, text, read in _QUEUE_GAUGES:
            gauge = GaugeMetricFamily(name, text, labels=["queue"])
            for queue in delivery.queues:
                gauge.add_metric([queue.name], read(queue))
            yield gauge
        yield from self._journal()

    def _journal(self) -> Iterator[Metric]:
        journal = self._delivery.journal
        if journal is None:
            return
        up = journal.error is None
        yield GaugeMetricFamily("qmp_agent_journal_up", "Whether the journal accepts records: 1 or 0.", value=up)
        yield CounterMetricFamily(
            "qmp_agent_journal_commits",
            "Total number of journal transactions; each is one fsync.",
            value=journal.commits,
        )
        yield CounterMetricFamily(
            "qmp_agent_journal_files_quarantined",
            "Total number of damaged journal files quarantined.",
            value=journal.quarantined,
        )
        written = CounterMetricFamily(
            "qmp_agent_journal_records_written", "Total number of records written to the journal.", labels=["queue"]
        )
        for queue in self._delivery.queues:
            written.add_metric([queue.name], queue.journaled)
        yield written


_QUEUE_GAUGES: tuple[tuple[str, str, Callable[[RecordQueue], float]], ...] = (
    ("qmp_agent_queue_records", "Number of records waiting to be delivered.", len),
    ("qmp_agent_queue_memory_bytes", "Size of the waiting records in memory in bytes.", lambda q: q.memory_bytes),
    (
        "qmp_agent_queue_disk_bytes",
        "Size of the waiting records in the journal in bytes.",
        lambda q: q.backlog.stored.bytes,
    ),
    (
        "qmp_agent_queue_disk_limit_bytes",
        "Maximum size of the records in the journal in bytes; beyond it, the oldest records are dropped.",
        lambda q: q.limits.disk,
    ),
    (
        "qmp_agent_queue_oldest_record_age_seconds",
        "Age of the oldest record in flight in seconds; 0 if none is in flight.",
        lambda q: q.oldest_age_seconds(),
    ),
)


class SnapshotCollector(Collector):
    """Reads the monitors and VMs of the snapshot."""

    def __init__(self, snapshot: Snapshot) -> None:
        self._snapshot = snapshot

    def collect(self) -> Iterator[Metric]:
        """Yield the current values."""
        states = Tally(status.state for status in self._snapshot.monitors.values())
        monitors = GaugeMetricFamily("qmp_agent_monitors", "Number of monitors by state.", labels=["state"])
        for state in MonitorState:
            monitors.add_metric([state.value], states[state])
        yield monitors
        yield GaugeMetricFamily(
            "qmp_agent_series_limit_dropped_subjects",
            "Number of disks, vCPUs, jobs and other subjects without series, because their VM exceeds a series limit.",
            value=sum(view.dropped_subjects.total() for _, view in self._snapshot.views()),
        )


class AlertCollector(Collector):
    """Reads the firing alerts."""

    def __init__(self, store: AlertStore) -> None:
        self._store = store

    def collect(self) -> Iterator[Metric]:
        """Yield the current values."""
        labels = ["vm_uuid", "vm", "alert", "device", "level", "severity"]
        firing = GaugeMetricFamily("qemu_alert_firing", "A constant 1 for each firing alert.", labels=labels)
        # Two VMs with one UUID may have the same alert, and a series must not appear twice.
        for values in sorted(
            {(a.vm.uuid, a.vm.name, a.name, a.subject, a.level, a.severity.label) for a in self._store}
        ):
            firing.add_metric(values, 1)
        yield firing


class ReloadCollector(Collector):
    """Reads the outcome of the last config reload."""

    def __init__(self, reload: Reload) -> None:
        self._reload = reload

    def collect(self) -> Iterator[Metric]:
        """Yield the current values."""
        yield GaugeMetricFamily(
            "qmp_agent_config_last_reload_successful",
            "Whether the last config reload succeeded: 1 or 0. After a failure the previous config stays in use.",
            value=self._reload.error is None,
        )
        yield GaugeMetricFamily(
            "qmp_agent_config_last_reload_success_timestamp_seconds",
            "Time of the last successful config reload, in seconds since the epoch.",
            value=self._reload.loaded_at,
        )


class EndpointCollector(Collector):
    """Reads the HTTP endpoint."""

    def __init__(self, endpoint: HttpEndpoint) -> None:
        self._endpoint = endpoint

    def collect(self) -> Iterator[Metric]:
        """Yield the current values."""
        yield CounterMetricFamily(
            "qmp_agent_http_connections_refused",
            "Total number of connections refused by the HTTP endpoint because too many were open.",
            value=self._endpoint.refused_connections,
        )
