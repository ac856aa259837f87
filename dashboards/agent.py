"""Dashboard of the agents: monitors, delivery, and resource usage."""

from dashboards.panels import HOSTS, HOSTS_MATCHER, Dashboard, graph_panel, number_panel, rate

HOST = "{{instance}}"
QUEUE = "{{instance}} {{queue}}"
NO_JOURNAL = "only with Kafka"
BAD = ((0.000001, "red"),)


def dropped_in_range(series: str) -> str:
    """Return a query for a counter's increase over the time range. The series begins at the first drop, so a missing start value is 0."""
    now = f"sum({series}{{{HOSTS_MATCHER}}})"
    return f"({now} - (sum({series}{{{HOSTS_MATCHER}}} offset $__range) or vector(0))) or vector(0)"


AGENT = Dashboard(
    "qmp-agent",
    "qmp-agent",
    "Health of the agents: monitors, delivery, and resource usage.",
    (HOSTS,),
    HOSTS_MATCHER,
    {
        "Summary": (
            number_panel("Agents", "short", f"count(qmp_agent_build_info{{{HOSTS_MATCHER}}})"),
            number_panel("Monitors up", "short", f'sum(qmp_agent_monitors{{{HOSTS_MATCHER},state="up"}})'),
            number_panel(
                "Monitors not up", "short", f'sum(qmp_agent_monitors{{{HOSTS_MATCHER},state!="up"}})', thresholds=BAD
            ),
            number_panel(
                "Sinks down",
                "short",
                f"count(qmp_agent_sink_up{{{HOSTS_MATCHER}}} == 0) or vector(0)",
                thresholds=((1, "red"),),
            ),
            number_panel(
                "Collectors off",
                "short",
                f"count(qmp_agent_collector_degraded{{{HOSTS_MATCHER}}}) or vector(0)",
                thresholds=BAD,
            ),
            number_panel(
                "Records dropped", "short", dropped_in_range("qmp_agent_records_dropped_total"), thresholds=BAD
            ),
            number_panel("Events dropped", "short", dropped_in_range("qmp_agent_events_dropped_total"), thresholds=BAD),
        ),
        "Monitors": (
            graph_panel(
                "Monitors by state",
                "short",
                (f"sum by (instance, state) (qmp_agent_monitors{{{HOSTS_MATCHER}}}) > 0", f"{HOST} {{{{state}}}}"),
                help="busy: another client is connected. stalled: a response is overdue. denied: the agent has no permission to connect.",
            ),
            graph_panel(
                "Collector runs",
                "cps",
                (rate("qmp_agent_collector_runs_total", HOSTS_MATCHER, "instance, outcome"), f"{HOST} {{{{outcome}}}}"),
            ),
            graph_panel(
                "QMP response time, 99th percentile",
                "s",
                (
                    f"histogram_quantile(0.99, {rate('qmp_agent_qmp_response_seconds_bucket', HOSTS_MATCHER, 'instance, le')})",
                    HOST,
                ),
                thresholds=((1, "orange"),),
            ),
            graph_panel(
                "Oldest response of a VM",
                "s",
                (f"time() - min by (instance) (qemu_vm_last_response_timestamp_seconds{{{HOSTS_MATCHER}}})", HOST),
                thresholds=((60, "orange"),),
            ),
        ),
        "Delivery": (
            graph_panel(
                "Records created",
                "cps",
                (rate("qmp_agent_records_total", HOSTS_MATCHER, "instance, kind"), f"{HOST} {{{{kind}}}}"),
            ),
            graph_panel("Records delivered", "cps", (rate("qmp_agent_records_delivered_total", HOSTS_MATCHER), HOST)),
            graph_panel("Records queued", "short", (f"qmp_agent_queue_records{{{HOSTS_MATCHER}}}", QUEUE)),
            graph_panel(
                "Age of the oldest record",
                "s",
                (f"qmp_agent_queue_oldest_record_age_seconds{{{HOSTS_MATCHER}}}", QUEUE),
                thresholds=((60, "orange"),),
            ),
        ),
        "Journal": (
            graph_panel(
                "Queued on disk", "bytes", (f"qmp_agent_queue_disk_bytes{{{HOSTS_MATCHER}}}", QUEUE), empty=NO_JOURNAL
            ),
            graph_panel("Queued in memory", "bytes", (f"qmp_agent_queue_memory_bytes{{{HOSTS_MATCHER}}}", QUEUE)),
            graph_panel(
                "Transactions", "cps", (rate("qmp_agent_journal_commits_total", HOSTS_MATCHER), HOST), empty=NO_JOURNAL
            ),
            graph_panel(
                "Reconnects and quarantined files",
                "short",
                (f"increase(qmp_agent_sink_reconnects_total{{{HOSTS_MATCHER}}}[$__range])", f"{HOST} sink reconnects"),
                (
                    f"increase(qmp_agent_journal_files_quarantined_total{{{HOSTS_MATCHER}}}[$__range])",
                    f"{HOST} journal files quarantined",
                ),
            ),
        ),
        "Resource usage": (
            graph_panel(
                "CPU",
                "percentunit",
                (rate("qmp_agent_process_cpu_seconds_total", HOSTS_MATCHER), HOST),
                thresholds=((0.5, "orange"),),
            ),
            graph_panel("Memory", "bytes", (f"qmp_agent_process_resident_memory_bytes{{{HOSTS_MATCHER}}}", HOST)),
            graph_panel("Scrape duration", "s", (f"qmp_agent_scrape_duration_seconds{{{HOSTS_MATCHER}}}", HOST)),
            graph_panel(
                "Open files, share of the limit",
                "percentunit",
                (f"qmp_agent_process_open_fds{{{HOSTS_MATCHER}}} / qmp_agent_process_max_fds{{{HOSTS_MATCHER}}}", HOST),
                thresholds=((0.8, "orange"),),
            ),
        ),
        "Configuration and limits": (
            number_panel(
                "Failed config reloads",
                "short",
                f"count(qmp_agent_config_last_reload_successful{{{HOSTS_MATCHER}}} == 0) or vector(0)",
                thresholds=((1, "red"),),
                help="The agent keeps the previous config.",
            ),
            number_panel(
                "Subjects without series",
                "short",
                f"sum(qmp_agent_series_limit_dropped_subjects{{{HOSTS_MATCHER}}})",
                thresholds=((1, "orange"),),
                help="Disks, vCPUs and other subjects without series, because their VM exceeds a limit (config: limits).",
            ),
            number_panel(
                "Connections refused",
                "short",
                dropped_in_range("qmp_agent_listen_connections_refused_total"),
                thresholds=BAD,
            ),
        ),
    },
)
