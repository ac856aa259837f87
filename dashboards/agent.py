"""Health of the agents: monitors, delivery, and resource usage."""

from dashboards.panels import EVERY, HOSTS, Dashboard, graph, number, rate

HOST = "{{instance}}"
QUEUE = "{{instance}} {{queue}}"
NO_JOURNAL = "only with Kafka"
BAD = ((0.000001, "red"),)


def dropped(series: str) -> str:
    """Return the increase over the time range. It starts from 0, because such a counter begins at its first drop."""
    now = f"sum({series}{{{EVERY}}})"
    return f"({now} - (sum({series}{{{EVERY}}} offset $__range) or vector(0))) or vector(0)"


AGENT = Dashboard(
    "qmp-agent",
    "qmp-agent",
    "Health of the agents: monitors, delivery, and resource usage.",
    (HOSTS,),
    EVERY,
    {
        "Summary": (
            number("Agents", "short", f"count(qmp_agent_build_info{{{EVERY}}})"),
            number("Monitors up", "short", f'sum(qmp_agent_monitors{{{EVERY},state="up"}})'),
            number("Monitors not up", "short", f'sum(qmp_agent_monitors{{{EVERY},state!="up"}})', thresholds=BAD),
            number(
                "Sinks down",
                "short",
                f"count(qmp_agent_sink_up{{{EVERY}}} == 0) or vector(0)",
                thresholds=((1, "red"),),
            ),
            number(
                "Collectors off",
                "short",
                f"count(qmp_agent_collector_degraded{{{EVERY}}}) or vector(0)",
                thresholds=BAD,
            ),
            number("Records dropped", "short", dropped("qmp_agent_records_dropped_total"), thresholds=BAD),
            number("Events dropped", "short", dropped("qmp_agent_events_dropped_total"), thresholds=BAD),
        ),
        "Monitors": (
            graph(
                "Monitors by state",
                "short",
                (f"sum by (instance, state) (qmp_agent_monitors{{{EVERY}}}) > 0", f"{HOST} {{{{state}}}}"),
                help="busy: another client is connected. stalled: a response is overdue. denied: the agent has no permission to connect.",
            ),
            graph(
                "Collector runs",
                "cps",
                (rate("qmp_agent_collector_runs_total", EVERY, "instance, outcome"), f"{HOST} {{{{outcome}}}}"),
            ),
            graph(
                "QMP response time, 99th percentile",
                "s",
                (
                    f"histogram_quantile(0.99, {rate('qmp_agent_qmp_response_seconds_bucket', EVERY, 'instance, le')})",
                    HOST,
                ),
                thresholds=((1, "orange"),),
            ),
            graph(
                "Oldest response of a VM",
                "s",
                (f"time() - min by (instance) (qemu_vm_last_response_timestamp_seconds{{{EVERY}}})", HOST),
                thresholds=((60, "orange"),),
            ),
        ),
        "Delivery": (
            graph(
                "Records created",
                "cps",
                (rate("qmp_agent_records_total", EVERY, "instance, kind"), f"{HOST} {{{{kind}}}}"),
            ),
            graph("Records delivered", "cps", (rate("qmp_agent_records_delivered_total", EVERY), HOST)),
            graph("Records queued", "short", (f"qmp_agent_queue_records{{{EVERY}}}", QUEUE)),
            graph(
                "Age of the oldest record",
                "s",
                (f"qmp_agent_queue_oldest_record_age_seconds{{{EVERY}}}", QUEUE),
                thresholds=((60, "orange"),),
            ),
        ),
        "Journal": (
            graph("Queued on disk", "bytes", (f"qmp_agent_queue_disk_bytes{{{EVERY}}}", QUEUE), empty=NO_JOURNAL),
            graph("Queued in memory", "bytes", (f"qmp_agent_queue_memory_bytes{{{EVERY}}}", QUEUE)),
            graph("Transactions", "cps", (rate("qmp_agent_journal_commits_total", EVERY), HOST), empty=NO_JOURNAL),
            graph(
                "Reconnects and quarantined files",
                "short",
                (f"increase(qmp_agent_sink_reconnects_total{{{EVERY}}}[$__range])", f"{HOST} sink reconnects"),
                (
                    f"increase(qmp_agent_journal_files_quarantined_total{{{EVERY}}}[$__range])",
                    f"{HOST} journal files quarantined",
                ),
            ),
        ),
        "Resource usage": (
            graph(
                "CPU",
                "percentunit",
                (rate("qmp_agent_process_cpu_seconds_total", EVERY), HOST),
                thresholds=((0.5, "orange"),),
            ),
            graph("Memory", "bytes", (f"qmp_agent_process_resident_memory_bytes{{{EVERY}}}", HOST)),
            graph("Scrape duration", "s", (f"qmp_agent_scrape_duration_seconds{{{EVERY}}}", HOST)),
            graph(
                "Open files, share of the limit",
                "percentunit",
                (f"qmp_agent_process_open_fds{{{EVERY}}} / qmp_agent_process_max_fds{{{EVERY}}}", HOST),
                thresholds=((0.8, "orange"),),
            ),
        ),
        "Configuration and limits": (
            number(
                "Failed config reloads",
                "short",
                f"count(qmp_agent_config_last_reload_successful{{{EVERY}}} == 0) or vector(0)",
                thresholds=((1, "red"),),
                help="The agent keeps the previous config.",
            ),
            number(
                "Subjects without series",
                "short",
                f"sum(qmp_agent_series_limit_dropped_subjects{{{EVERY}}})",
                thresholds=((1, "orange"),),
                help="Disks and other subjects of VMs that exceed the limits (config: limits).",
            ),
            number(
                "Connections refused", "short", dropped("qmp_agent_listen_connections_refused_total"), thresholds=BAD
            ),
        ),
    },
)
