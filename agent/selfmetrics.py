"""The agent's metrics of itself, `qmp_agent_*`, by prometheus_client."""

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.platform_collector import PlatformCollector
from prometheus_client.process_collector import ProcessCollector

from agent import __version__

_REPLY_BUCKETS = (0.0005, 0.001, 0.002, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 1, 5)


class SelfMetrics:
    """One registry with all of them; made once for each agent."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        ProcessCollector(namespace="qmp_agent", registry=self.registry)
        PlatformCollector(registry=self.registry)
        build = Gauge("qmp_agent_build_info", "The agent's version.", ["version"], registry=self.registry)
        build.labels(__version__).set(1)
        self.monitors = Gauge(
            "qmp_agent_monitors", "Monitors by the state of the session with them.", ["state"], registry=self.registry
        )
        self.monitor_state = Gauge(
            "qmp_agent_monitor_state",
            "1 for each monitor and the state it is in.",
            ["monitor", "state"],
            registry=self.registry,
        )
        self.questions = Counter(
            "qmp_agent_questions",
            "Collectors' questions to VMs, by outcome.",
            ["collector", "outcome"],
            registry=self.registry,
        )
        self.replies = Histogram(
            "qmp_agent_reply_seconds",
            "How long VMs took to answer.",
            ["collector"],
            buckets=_REPLY_BUCKETS,
            registry=self.registry,
        )
        self.records = Counter("qmp_agent_records", "Records made, by kind.", ["kind"], registry=self.registry)
        self.dropped = Counter(
            "qmp_agent_records_dropped",
            "Records that were not delivered, by reason.",
            ["reason"],
            registry=self.registry,
        )
        self.delivered = Counter("qmp_agent_records_delivered", "Records that were delivered.", registry=self.registry)
        self.lane_records = Gauge(
            "qmp_agent_lane_records", "Records that wait to be delivered.", ["lane"], registry=self.registry
        )
        self.lane_bytes = Gauge(
            "qmp_agent_lane_bytes", "Bytes of records that wait to be delivered.", ["lane"], registry=self.registry
        )
        self.sink_up = Gauge("qmp_agent_sink_up", "Whether records are being delivered.", registry=self.registry)
        self.scrape_seconds = Gauge(
            "qmp_agent_scrape_seconds", "How long making the last scrape took.", registry=self.registry
        )
        self.overflowed = Counter(
            "qmp_agent_series_overflowed",
            "Subjects that got no series because their VM has too many.",
            registry=self.registry,
        )

    def render(self) -> bytes:
        """Return their text."""
        return generate_latest(self.registry)
