"""The dashboard of one host, made with Grafana's own SDK: `python -m dashboards.host > dashboards/host.json`."""

import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from grafana_foundation_sdk.builders.dashboard import Dashboard, DatasourceVariable, QueryVariable, Row
from grafana_foundation_sdk.builders.prometheus import Dataquery
from grafana_foundation_sdk.builders.timeseries import Panel
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.models.dashboard import DataSourceRef

SOURCE = DataSourceRef(type_val="prometheus", uid="${source}")
WHERE = 'instance="$host",vm=~"$vm"'
WRITES = f"(rate(qemu_block_writes_total{{{WHERE}}}[$__rate_interval]) > 0)"


@dataclass(frozen=True, slots=True)
class Graph:
    """One panel: its title, its unit in Grafana's names, and pairs of a query and a legend."""

    title: str
    unit: str
    queries: Sequence[tuple[str, str]]


ROWS: dict[str, Sequence[Graph]] = {
    "Virtual machines": (
        Graph("Answers in time", "bool_yes_no", ((f"qemu_vm_up{{{WHERE}}}", "{{vm}}"),)),
        Graph("Run state", "short", ((f"qemu_runstate_status{{{WHERE}}}", "{{vm}} {{status}}"),)),
        Graph(
            "Alerts firing",
            "short",
            (
                (
                    f"sum by (vm, alert, device, level) (qemu_alert_firing{{{WHERE}}})",
                    "{{vm}} {{device}} {{alert}} {{level}}",
                ),
            ),
        ),
    ),
    "Disks": (
        Graph(
            "Read", "Bps", ((f"rate(qemu_block_read_bytes_total{{{WHERE}}}[$__rate_interval])", "{{vm}} {{device}}"),)
        ),
        Graph(
            "Written",
            "Bps",
            ((f"rate(qemu_block_write_bytes_total{{{WHERE}}}[$__rate_interval])", "{{vm}} {{device}}"),),
        ),
        Graph(
            "Time of a write",
            "s",
            ((f"rate(qemu_block_write_seconds_total{{{WHERE}}}[$__rate_interval]) / {WRITES}", "{{vm}} {{device}}"),),
        ),
        Graph(
            "Failed",
            "ops",
            (
                (f"rate(qemu_block_failed_reads_total{{{WHERE}}}[$__rate_interval])", "{{vm}} {{device}} reads"),
                (f"rate(qemu_block_failed_writes_total{{{WHERE}}}[$__rate_interval])", "{{vm}} {{device}} writes"),
            ),
        ),
    ),
    "Thin disks": (
        Graph("Left", "bytes", ((f"qemu_block_space_headroom_bytes{{{WHERE}}}", "{{vm}} {{device}}"),)),
        Graph(
            "Used",
            "percentunit",
            (
                (
                    f"qemu_block_space_used_bytes{{{WHERE}}} / qemu_block_space_limit_bytes{{{WHERE}}}",
                    "{{vm}} {{device}}",
                ),
            ),
        ),
        Graph("Growth", "Bps", ((f"qemu_block_space_growth_bytes_per_second{{{WHERE}}}", "{{vm}} {{device}}"),)),
    ),
    "Memory": (
        Graph("Balloon", "bytes", ((f"qemu_balloon_actual_bytes{{{WHERE}}}", "{{vm}}"),)),
        Graph("Available in the guest", "bytes", ((f"qemu_guest_memory_available_bytes{{{WHERE}}}", "{{vm}}"),)),
    ),
    "The agent": (
        Graph("Monitors", "short", (('sum by (state) (qmp_agent_monitors{instance="$host"})', "{{state}}"),)),
        Graph("Records waiting", "short", (('qmp_agent_lane_records{instance="$host"}', "{{lane}}"),)),
        Graph(
            "CPU",
            "percentunit",
            (('rate(qmp_agent_process_cpu_seconds_total{instance="$host"}[$__rate_interval])', "agent"),),
        ),
        Graph("Memory", "bytes", (('qmp_agent_process_resident_memory_bytes{instance="$host"}', "agent"),)),
    ),
}


def queries() -> Iterator[tuple[str, str]]:
    """Yield every panel's title and query."""
    for graphs in ROWS.values():
        for graph in graphs:
            for query, _ in graph.queries:
                yield graph.title, query


def build() -> str:
    """Return the dashboard as Grafana imports it."""
    dashboard = (
        Dashboard("QEMU host")
        .uid("qemu-host")
        .tags(["qemu", "qmp-agent"])
        .refresh("30s")
        .time("now-1h", "now")
        .with_variable(DatasourceVariable("source").label("Data source").type("prometheus"))
        .with_variable(
            QueryVariable("host").label("Host").datasource(SOURCE).query("label_values(qmp_agent_build_info, instance)")
        )
        .with_variable(
            QueryVariable("vm")
            .label("VM")
            .datasource(SOURCE)
            .multi(multi=True)
            .include_all(include_all=True)
            .all_value(".*")
            .query('label_values(qemu_vm_info{instance="$host"}, vm)')
        )
    )
    for title, graphs in ROWS.items():
        dashboard = dashboard.with_row(Row(title))
        for graph in graphs:
            dashboard = dashboard.with_panel(_panel(graph, 24 // len(graphs)))
    return JSONEncoder(sort_keys=True, indent=2).encode(dashboard.build())


def _panel(graph: Graph, width: int) -> Panel:
    panel = Panel().title(graph.title).unit(graph.unit).datasource(SOURCE).span(width).height(8)
    for query, legend in graph.queries:
        panel = panel.with_target(Dataquery().expr(query).legend_format(legend).datasource(SOURCE))
    return panel


if __name__ == "__main__":
    sys.stdout.write(build() + "\n")
