"""The agents themselves: whether they see everything, deliver everything, and what they cost."""

from dashboards.panels import EVERY, HOSTS, Dashboard, graph, number, rate

HOST = "{{instance}}"
LANE = "{{instance}} {{queue}}"
NO_JOURNAL = "there is a journal only with Kafka"
BAD = ((0.000001, "red"),)


def lost(series: str) -> str:
    """Return how many were lost in the time that is shown: counted from nothing, since such a counter begins at its first loss."""
    now = f"sum({series}{{{EVERY}}})"
    return f"({now} - (sum({series}{{{EVERY}}} offset $__range) or vector(0))) or vector(0)"


AGENT = Dashboard(
    "qmp-agent",
    "qmp-agent",
    "The agents themselves: whether they see everything, deliver everything, and what they cost.",
    (HOSTS,),
    EVERY,
    {
        "At a glance": (
            number("Agents", "short", f"count(qmp_agent_build_info{{{EVERY}}})"),
            number("Monitors up", "short", f'sum(qmp_agent_monitors{{{EVERY},state="up"}})'),
            number("Monitors not up", "short", f'sum(qmp_agent_monitors{{{EVERY},state!="up"}})', thresholds=BAD),
            number(
                "Do not deliver",
                "short",
                f"count(qmp_agent_sink_up{{{EVERY}}} == 0) or vector(0)",
                thresholds=((1, "red"),),
            ),
            number("Records lost", "short", lost("qmp_agent_records_dropped_total"), thresholds=BAD),
            number("Events lost", "short", lost("qmp_agent_events_dropped_total"), thresholds=BAD),
        ),
        "What it sees": (
            graph(
                "Monitors",
                "short",
                (f"sum by (instance, state) (qmp_agent_monitors{{{EVERY}}}) > 0", f"{HOST} {{{{state}}}}"),
                help="busy: another client holds it. stalled: a reply is overdue. denied: the agent may not connect.",
            ),
            graph(
                "Questions",
                "cps",
                (rate("qmp_agent_collector_runs_total", EVERY, "instance, outcome"), f"{HOST} {{{{outcome}}}}"),
            ),
            graph(
                "99 of 100 answers took at most",
                "s",
                (
                    f"histogram_quantile(0.99, {rate('qmp_agent_qmp_response_seconds_bucket', EVERY, 'instance, le')})",
                    HOST,
                ),
                thresholds=((1, "orange"),),
            ),
            graph(
                "Oldest figure of a VM",
                "s",
                (f"time() - min by (instance) (qemu_vm_last_response_timestamp_seconds{{{EVERY}}})", HOST),
                thresholds=((60, "orange"),),
            ),
        ),
        "What it delivers": (
            graph(
                "Records made",
                "cps",
                (rate("qmp_agent_records_total", EVERY, "instance, kind"), f"{HOST} {{{{kind}}}}"),
            ),
            graph("Records delivered", "cps", (rate("qmp_agent_records_delivered_total", EVERY), HOST)),
            graph("Records waiting", "short", (f"qmp_agent_queue_records{{{EVERY}}}", LANE)),
            graph(
                "Age of the oldest record",
                "s",
                (f"qmp_agent_queue_oldest_record_age_seconds{{{EVERY}}}", LANE),
                thresholds=((60, "orange"),),
            ),
        ),
        "Journal": (
            graph("Waiting on disk", "bytes", (f"qmp_agent_queue_disk_bytes{{{EVERY}}}", LANE), empty=NO_JOURNAL),
            graph("Waiting in memory", "bytes", (f"qmp_agent_queue_memory_bytes{{{EVERY}}}", LANE)),
            graph("Transactions", "cps", (rate("qmp_agent_journal_commits_total", EVERY), HOST), empty=NO_JOURNAL),
            graph(
                "Rebuilt and set aside",
                "short",
                (f"increase(qmp_agent_sink_reconnects_total{{{EVERY}}}[$__range])", f"{HOST} sink rebuilt"),
                (
                    f"increase(qmp_agent_journal_files_quarantined_total{{{EVERY}}}[$__range])",
                    f"{HOST} journal set aside",
                ),
            ),
        ),
        "What it costs": (
            graph(
                "CPU",
                "percentunit",
                (rate("qmp_agent_process_cpu_seconds_total", EVERY), HOST),
                thresholds=((0.5, "orange"),),
            ),
            graph("Memory", "bytes", (f"qmp_agent_process_resident_memory_bytes{{{EVERY}}}", HOST)),
            graph("Making a scrape", "s", (f"qmp_agent_scrape_duration_seconds{{{EVERY}}}", HOST)),
            graph(
                "Open files, of those it may have",
                "percentunit",
                (f"qmp_agent_process_open_fds{{{EVERY}}} / qmp_agent_process_max_fds{{{EVERY}}}", HOST),
                thresholds=((0.8, "orange"),),
            ),
        ),
        "Its config": (
            number(
                "Configs refused",
                "short",
                f"count(qmp_agent_config_last_reload_successful{{{EVERY}}} == 0) or vector(0)",
                thresholds=((1, "red"),),
                help="The one before it stays.",
            ),
            number(
                "Without series",
                "short",
                f"sum(qmp_agent_series_limit_dropped_subjects{{{EVERY}}})",
                thresholds=((1, "orange"),),
                help="Disks and the like of VMs that have too many (limits).",
            ),
            number("Connections refused", "short", lost("qmp_agent_connections_refused_total"), thresholds=BAD),
        ),
    },
)
