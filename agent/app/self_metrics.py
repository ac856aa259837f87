"""The agent's metrics about itself, `qmp_agent_*`.

Other modules increment the counters in `SelfMetrics`. The classes `*Metrics` read the state of the agent's parts at each scrape.
"""

import asyncio
from bisect import bisect_left
from collections import Counter as Tally
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from itertools import accumulate

from prometheus_client import CollectorRegistry, Counter, Gauge, disable_created_metrics, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.platform_collector import PlatformCollector
from prometheus_client.process_collector import ProcessCollector
from prometheus_client.registry import Collector
from prometheus_client.utils import floatToGoString

from agent import __version__
from agent.alerts.alertmanager import AlertmanagerClient
from agent.alerts.store import AlertStore
from agent.config.reload import ConfigReloader
from agent.delivery.pipeline import DeliveryPipeline
from agent.delivery.queue import RecordQueue
from agent.exposition.snapshot import Snapshot
from agent.http.server import HttpEndpoint
from agent.session.shared_types import MonitorState

# Do not add a `_created` series to each counter: the series would double the text, and Prometheus would not use them.
disable_created_metrics()  # type: ignore[no-untyped-call]  # the library has no type for it

_RESPONSE_BUCKETS = (0.0005, 0.001, 0.002, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 1.0, 5.0)


class SelfMetrics:
    """The prometheus_client registry of one agent, and the counters that other modules increment.

    Attributes:
        registry: the prometheus_client registry.
        collector_runs: number of runs of the collectors, by collector and outcome. A prometheus_client counter would take a lock.
        guest_commands: number of commands to guest agents, by command and outcome.
        response_seconds: histogram of the time that QEMU took to answer all commands of one batch.
        events_dropped: number of events that were dropped before they became records, by reason.
        messages_skipped: number of messages from QEMU that were skipped, by reason.
        connections_refused: number of connections that `listen` addresses refused, by address and reason.
        scrape_duration_seconds: duration of the last scrape.
    """

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.collector_runs: Tally[tuple[str, str]] = Tally()
        self.guest_commands: Tally[tuple[str, str]] = Tally()
        ProcessCollector(namespace="qmp_agent", registry=self.registry)
        PlatformCollector(registry=self.registry)
        gauge, counter = partial(Gauge, registry=self.registry), partial(Counter, registry=self.registry)
        build = gauge("qmp_agent_build_info", "A constant 1 with the version of the agent as label.", ["version"])
        build.labels(__version__).set(1)
        self.register(
            CollectorRunMetrics(self.collector_runs), GuestCommandMetrics(self.guest_commands), AsyncioTaskMetrics()
        )
        self.response_seconds = ResponseTimes()
        self.register(self.response_seconds)
        self.events_dropped = counter(
            "qmp_agent_events_dropped",
            "Total number of events dropped before they became records, by reason.",
            ["reason"],
        )
        self.messages_skipped = counter(
            "qmp_agent_messages_skipped",
            "Total number of skipped messages from QEMU. The reason is unreadable, oversized or stray (a reply without a command).",
            ["reason"],
        )
        self.connections_refused = counter(
            "qmp_agent_listen_connections_refused",
            "Total number of connections that a `listen` address refused. The reason is user, limit or process.",
            ["address", "reason"],
        )
        self.scrape_duration_seconds = gauge(
            "qmp_agent_scrape_duration_seconds", "Duration of the last scrape in seconds."
        )

    def register(self, *collectors: Collector) -> None:
        """Add prometheus_client collectors to the registry."""
        for collector in collectors:
            self.registry.register(collector)

    def events_dropped_by_reason(self) -> dict[str, float]:
        """Return the number of events that were dropped before they became records, by reason."""
        (metric,) = self.events_dropped.collect()
        return {sample.labels["reason"]: sample.value for sample in metric.samples if sample.name.endswith("_total")}

    def render(self) -> bytes:
        """Return all metrics in Prometheus' text format."""
        return generate_latest(self.registry)


class ResponseTimes(Collector):
    """Histogram of QEMU's response times without a lock, because prometheus_client's histogram takes a lock for each value."""

    def __init__(self) -> None:
        self._counts = [0] * (len(_RESPONSE_BUCKETS) + 1)
        self._sum = 0.0

    def observe(self, seconds: float) -> None:
        """Add a response time in seconds to the histogram."""
        self._counts[bisect_left(_RESPONSE_BUCKETS, seconds)] += 1
        self._sum += seconds

    def collect(self) -> Iterator[Metric]:
        """Yield the histogram with its current values."""
        bounds = [*map(floatToGoString, _RESPONSE_BUCKETS), "+Inf"]
        yield HistogramMetricFamily(
            "qmp_agent_qmp_response_seconds",
            "Time in seconds that QEMU took to answer all commands of one write.",
            buckets=list(zip(bounds, accumulate(self._counts), strict=True)),
            sum_value=self._sum,
        )


class CollectorRunMetrics(Collector):
    """Metric of the collector runs. A collector polls one part of QEMU's state."""

    def __init__(self, runs: Mapping[tuple[str, str], int]) -> None:
        self._runs = runs

    def collect(self) -> Iterator[Metric]:
        """Yield the metrics with their current values."""
        runs = CounterMetricFamily(
            "qmp_agent_collector_runs", "Total number of collector runs, by outcome.", labels=["collector", "outcome"]
        )
        for labels, count in self._runs.items():
            runs.add_metric(labels, count)
        yield runs


class GuestCommandMetrics(Collector):
    """Metrics of the commands to guest agents."""

    def __init__(self, commands: Mapping[tuple[str, str], int]) -> None:
        self._commands = commands

    def collect(self) -> Iterator[Metric]:
        """Yield the metrics with their current values."""
        commands = CounterMetricFamily(
            "qmp_agent_guest_agent_commands",
            "Total number of commands to guest agents, by outcome: ok, error, timeout, unreadable or lost.",
            labels=["command", "outcome"],
        )
        for labels, count in self._commands.items():
            commands.add_metric(labels, count)
        yield commands


class AsyncioTaskMetrics(Collector):
    """Metric of the number of asyncio tasks."""

    def collect(self) -> Iterator[Metric]:
        """Yield the metrics with their current values."""
        text = "Number of asyncio tasks. Each monitor has several tasks."
        yield GaugeMetricFamily("qmp_agent_asyncio_tasks", text, value=len(asyncio.all_tasks()))


class PublishedRecordsMetrics(Collector):
    """Metrics of the published records."""

    def __init__(self, published: Mapping[str, int]) -> None:
        self._published = published

    def collect(self) -> Iterator[Metric]:
        """Yield the metrics with their current values."""
        records = CounterMetricFamily(
            "qmp_agent_records", "Total number of records published, by kind.", labels=["kind"]
        )
        for kind, count in self._published.items():
            records.add_metric([kind], count)
        yield records


class DeliveryMetrics(Collector):
    """Metrics of the sink, the queues and the journal."""

    def __init__(self, delivery: DeliveryPipeline) -> None:
        self._delivery = delivery

    def collect(self) -> Iterator[Metric]:
        """Yield the metrics with their current values."""
        delivery = self._delivery
        supervisor = delivery.supervisor
        up = supervisor.error is None
        yield GaugeMetricFamily("qmp_agent_sink_up", "Whether the sink accepts records: 1 or 0.", value=up)
        yield CounterMetricFamily(
            "qmp_agent_records_delivered", "Total number of records delivered.", value=supervisor.delivered
        )
        yield CounterMetricFamily(
            "qmp_agent_sink_reconnects",
            "Total number of times the sink reconnected after a failure.",
            value=supervisor.reconnects,
        )
        dropped = CounterMetricFamily(
            "qmp_agent_records_dropped",
            "Total number of records dropped, by queue and reason.",
            labels=["queue", "reason"],
        )
        for (queue_name, reason), count in delivery.drops.totals.items():
            dropped.add_metric([queue_name, reason], count)
        yield dropped
        for name, help_text, read in _QUEUE_GAUGES:
            gauge = GaugeMetricFamily(name, help_text, labels=["queue"])
            for queue in delivery.queues:
                gauge.add_metric([queue.name], read(queue))
            yield gauge
        yield from self._collect_journal()

    def _collect_journal(self) -> Iterator[Metric]:
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
            "Total number of damaged journal files that were quarantined.",
            value=journal.quarantined_files,
        )
        written = CounterMetricFamily(
            "qmp_agent_journal_records_written", "Total number of records written to the journal.", labels=["queue"]
        )
        for queue in self._delivery.queues:
            written.add_metric([queue.name], queue.journaling.written_records)
        yield written


_QUEUE_GAUGES: tuple[tuple[str, str, Callable[[RecordQueue], float]], ...] = (
    ("qmp_agent_queue_records", "Number of records waiting to be delivered.", len),
    ("qmp_agent_queue_memory_bytes", "Size of the waiting records in memory in bytes.", lambda q: q.memory_bytes),
    (
        "qmp_agent_queue_disk_bytes",
        "Size of the records in the journal in bytes, including delivered records that are not deleted yet.",
        lambda q: q.backlog.stored_size.bytes,
    ),
    (
        "qmp_agent_queue_disk_limit_bytes",
        "Maximum size of the records in the journal in bytes; beyond it, the oldest records are dropped.",
        lambda q: q.limits.disk,
    ),
    (
        "qmp_agent_queue_oldest_record_age_seconds",
        "Age of the oldest waiting record in seconds, in flight, in memory or on disk; 0 if no record waits.",
        lambda q: q.oldest_record_age_seconds(),
    ),
)


class MonitorMetrics(Collector):
    """Metrics of the monitors and VMs in the snapshot."""

    def __init__(self, snapshot: Snapshot) -> None:
        self._snapshot = snapshot

    def collect(self) -> Iterator[Metric]:
        """Yield the metrics with their current values."""
        states = Tally(status.state for status in self._snapshot.monitors.values())
        monitors = GaugeMetricFamily("qmp_agent_monitors", "Number of monitors by state.", labels=["state"])
        for state in MonitorState:
            monitors.add_metric([state.value], states[state])
        yield monitors
        yield GaugeMetricFamily(
            "qmp_agent_series_limit_dropped_subjects",
            "Number of disks, vCPUs, jobs and other subjects without series, because their VM exceeds a series limit.",
            value=sum(view.dropped_subjects.total() for _, view in self._snapshot.one_view_per_uuid()),
        )


class AlertMetrics(Collector):
    """Metrics of the firing alerts."""

    def __init__(self, store: AlertStore) -> None:
        self._store = store

    def collect(self) -> Iterator[Metric]:
        """Yield the metrics with their current values."""
        labels = ["vm_uuid", "vm", "alert", "device", "pool", "level", "severity"]
        firing = GaugeMetricFamily("qemu_alert_firing", "A constant 1 for each firing alert.", labels=labels)
        # A set removes duplicates: two VMs with the same UUID and name may have the same alert, and a series must not appear twice.
        for values in sorted(
            {(a.vm.uuid, a.vm.name, a.name, a.device, a.pool, a.level, a.severity.label) for a in self._store}
        ):
            firing.add_metric(values, 1)
        yield firing
        yield CounterMetricFamily(
            "qmp_agent_alerts_suppressed",
            "Total number of alerts that did not fire because their VM had too many.",
            value=self._store.suppressed,
        )


class AlertmanagerMetrics(Collector):
    """Metrics of the members of the configured Alertmanager."""

    def __init__(self, client: Callable[[], AlertmanagerClient | None]) -> None:
        self._client = client

    def collect(self) -> Iterator[Metric]:
        """Yield the metrics with their current values."""
        client = self._client()
        members = client.members if client is not None else ()
        labels = ["alertmanager"]
        up = GaugeMetricFamily(
            "qmp_agent_alertmanager_up",
            "Whether the last request to this Alertmanager succeeded: 1 or 0; absent before the first request.",
            labels=labels,
        )
        sent = CounterMetricFamily(
            "qmp_agent_alertmanager_alerts_sent", "Total number of alerts sent to this Alertmanager.", labels=labels
        )
        failed = CounterMetricFamily(
            "qmp_agent_alertmanager_requests_failed",
            "Total number of requests to this Alertmanager that failed.",
            labels=labels,
        )
        for member in members:
            if member.up is not None:
                up.add_metric([member.name], member.up)
            sent.add_metric([member.name], member.alerts_sent)
            failed.add_metric([member.name], member.failed_requests)
        yield from (up, sent, failed)


class ConfigReloadMetrics(Collector):
    """Metrics of the latest config reload."""

    def __init__(self, reload: ConfigReloader) -> None:
        self._reload = reload

    def collect(self) -> Iterator[Metric]:
        """Yield the metrics with their current values."""
        yield GaugeMetricFamily(
            "qmp_agent_config_last_reload_successful",
            "Whether the last config reload succeeded: 1 or 0. The previous config stays in use after a failure.",
            value=self._reload.error is None,
        )
        yield GaugeMetricFamily(
            "qmp_agent_config_last_reload_success_timestamp_seconds",
            "Time of the last successful config reload, in seconds since the epoch.",
            value=self._reload.loaded_at,
        )


class HttpEndpointMetrics(Collector):
    """Metrics of the HTTP endpoint."""

    def __init__(self, endpoint: HttpEndpoint) -> None:
        self._endpoint = endpoint

    def collect(self) -> Iterator[Metric]:
        """Yield the metrics with their current values."""
        yield CounterMetricFamily(
            "qmp_agent_http_connections_refused",
            "Total number of connections that the HTTP endpoint refused because too many were open.",
            value=self._endpoint.refused_connections,
        )
