"""The agent's metrics of itself, `qmp_agent_*`, by prometheus_client."""

from collections import Counter as Tally
from collections.abc import Callable, Iterator
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

disable_created_metrics()  # type: ignore[no-untyped-call]  # it has no types; a series beside each counter that says when it began: twice the text for what nobody asks

_REPLY_BUCKETS = (0.0005, 0.001, 0.002, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 1, 5)


class _DeliveryCollector(Collector):
    """Reads the way out at each scrape, from the truth instead of by counting along."""

    def __init__(self) -> None:
        self.delivery: DeliveryPipeline | None = None

    def collect(self) -> Iterator[Metric]:
        """Yield its series."""
        delivery = self.delivery
        if delivery is None:
            return
        outlet, journal = delivery.outlet, delivery.journal
        yield GaugeMetricFamily(
            "qmp_agent_sink_up", "Whether records are being delivered.", value=outlet.trouble is None
        )
        yield CounterMetricFamily("qmp_agent_records_delivered", "Records that were delivered.", value=outlet.delivered)
        yield CounterMetricFamily(
            "qmp_agent_sink_reconnects",
            "How often the sink was closed for a failure and opened anew.",
            value=outlet.rebuilt,
        )
        lost = CounterMetricFamily(
            "qmp_agent_records_dropped",
            "Records that were not delivered, by lane and reason.",
            labels=["queue", "reason"],
        )
        for (lane_name, reason), count in delivery.losses.totals.items():
            lost.add_metric([lane_name, reason], count)
        yield lost
        for name, text, read in _LANE_GAUGES:
            gauge = GaugeMetricFamily(name, text, labels=["queue"])
            for lane in delivery.lanes:
                gauge.add_metric([lane.name], read(lane))
            yield gauge
        if journal is not None:
            yield GaugeMetricFamily(
                "qmp_agent_journal_up", "Whether events are journaled.", value=journal.trouble is None
            )
            yield CounterMetricFamily(
                "qmp_agent_journal_commits", "Transactions of the journal, an fsync each.", value=journal.commits
            )
            yield CounterMetricFamily(
                "qmp_agent_journal_files_quarantined",
                "Damaged journal files that were set aside.",
                value=journal.quarantined,
            )
            written = CounterMetricFamily(
                "qmp_agent_journal_records_written", "Records written to the journal.", labels=["queue"]
            )
            for lane in delivery.lanes:
                written.add_metric([lane.name], lane.journaled)
            yield written


_LANE_GAUGES: tuple[tuple[str, str, Callable[[RecordQueue], float]], ...] = (
    ("qmp_agent_queue_records", "Records that wait to be delivered.", len),
    ("qmp_agent_queue_memory_bytes", "Bytes of waiting records in memory.", lambda lane: lane.memory_bytes),
    ("qmp_agent_queue_disk_bytes", "Bytes of records in the journal.", lambda lane: lane.disk.bytes),
    (
        "qmp_agent_queue_disk_limit_bytes",
        "Bytes the journal may have; the oldest go then.",
        lambda lane: lane.budget.disk,
    ),
    (
        "qmp_agent_queue_oldest_record_age_seconds",
        "Age of the oldest record being sent; 0 where none is.",
        lambda lane: lane.lag_seconds(),
    ),
)


class _TallyCollector(Collector):
    """What is counted at every poll, by labels, as plain numbers: a Counter of the library's takes a lock each time."""

    def __init__(self) -> None:
        self.questions: Tally[tuple[str, str]] = Tally()
        self.records: Tally[str] = Tally()
        self.refused_connections = 0

    def collect(self) -> Iterator[Metric]:
        """Yield its series."""
        labels = ["collector", "outcome"]
        questions = CounterMetricFamily(
            "qmp_agent_collector_runs", "Collectors' questions to VMs, by outcome.", labels=labels
        )
        for key, count in self.questions.items():
            questions.add_metric(key, count)
        records = CounterMetricFamily("qmp_agent_records", "Records made, by kind.", labels=["kind"])
        for kind, count in self.records.items():
            records.add_metric([kind], count)
        yield questions
        yield records
        text = "Connections to the endpoint that were ended at once, because there were too many."
        yield CounterMetricFamily("qmp_agent_http_connections_refused", text, value=self.refused_connections)


class SelfMetrics:
    """One registry with all of them; made once for each agent."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self._delivery = _DeliveryCollector()
        self.registry.register(self._delivery)
        self._tallies = _TallyCollector()
        self.registry.register(self._tallies)
        self.questions = self._tallies.questions
        """How many there were, by collector and outcome."""
        self.records = self._tallies.records
        """How many were made, by kind."""
        ProcessCollector(namespace="qmp_agent", registry=self.registry)
        PlatformCollector(registry=self.registry)
        gauge, counter = partial(Gauge, registry=self.registry), partial(Counter, registry=self.registry)
        gauge("qmp_agent_build_info", "The agent's version.", ["version"]).labels(__version__).set(1)
        self.monitors = gauge("qmp_agent_monitors", "Monitors by the state of the session with them.", ["state"])
        self.reply = Histogram(
            "qmp_agent_qmp_response_seconds",
            "How long VMs took to answer all that was asked in one write.",
            buckets=_REPLY_BUCKETS,
            registry=self.registry,
        )
        text = "Events that were lost before they were records, by reason."
        self.dropped = counter("qmp_agent_events_dropped", text, ["reason"])
        labels = ["vm_uuid", "vm", "alert", "device", "level", "severity"]
        self.alerts = gauge("qemu_alert_firing", "1 for each alert that fires.", labels)
        text = "Connections to a `listen` address that were not let in, by reason: user, limit, process."
        self.refused = counter("qmp_agent_connections_refused", text, ["address", "reason"])
        self.scrape_seconds = gauge("qmp_agent_scrape_duration_seconds", "How long making the last scrape took.")
        text = "Whether the config was taken when it was read last; 0: the one before it stays."
        self.reloaded = gauge("qmp_agent_config_last_reload_successful", text)
        text = "When a config was taken last."
        self.reloaded_at = gauge("qmp_agent_config_last_reload_success_timestamp_seconds", text)
        self.tasks = gauge("qmp_agent_asyncio_tasks", "Tasks of the event loop: some for each monitor.")
        text = "Disks and the like that have no series, because their VM has too many."
        self.dropped_subjects = gauge("qmp_agent_series_limit_dropped_subjects", text)

    def events_lost(self) -> dict[str, float]:
        """Return how many events were lost before they were records, by reason."""
        (metric,) = self.dropped.collect()
        return {s.labels["reason"]: s.value for s in metric.samples if s.name.endswith("_total")}

    def read_delivery(self, delivery: DeliveryPipeline) -> None:
        """Have the state of the way out told by the next `render`."""
        self._delivery.delivery = delivery

    def read_reload(self, reload: Reload) -> None:
        """Have what became of the config told by the next `render`."""
        self.reloaded.set(reload.trouble is None)
        self.reloaded_at.set(reload.taken_at)

    def read_endpoint(self, refused_connections: int) -> None:
        """Have it told by the next `render` how many connections there was no room for."""
        self._tallies.refused_connections = refused_connections

    def read_alerts(self, book: AlertStore) -> None:
        """Have what fires told by the next `render`."""
        self.alerts.clear()
        for alert in book:
            labels = (alert.vm.uuid, alert.vm.name, alert.name, alert.subject, alert.level, alert.severity.label)
            self.alerts.labels(*labels).set(1)

    def render(self) -> bytes:
        """Return their text."""
        return generate_latest(self.registry)
