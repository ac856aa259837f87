"""Dashboard of live migrations: progress, throughput, convergence and downtime."""

from dashboards.panels import HOSTS, HOSTS_MATCHER, TO_VM, Column, Dashboard, graph_panel, number_panel, table_panel

BY = "instance, vm, vm_uuid"
VM = "{{vm}} from {{instance}}"
NONE = "no VM has migrated"
ACTIVE = f'{HOSTS_MATCHER},status=~"setup|active|device|pre-switchover|postcopy-.+"'


def migration_gauge(name: str) -> str:
    """Return a query for a migration gauge, such as `remaining_seconds`."""
    return f"qemu_migration_{name}{{{HOSTS_MATCHER}}}"


def migration_gauge_by_vm(name: str) -> str:
    """Return a query for a migration gauge, with the labels that identify a row of the table."""
    return f"max by ({BY}) ({migration_gauge(name)})"


DIRTIED = f"{migration_gauge('ram_dirty_pages_per_second')} * {migration_gauge('ram_page_bytes')}"
HAS_STATUS = f'{HOSTS_MATCHER},status!="none"'

MIGRATIONS = Dashboard(
    "qemu-migrations",
    "QEMU migrations",
    "Live migrations as their sources report them: progress, throughput, convergence and downtime.",
    (HOSTS,),
    HOSTS_MATCHER,
    {
        "Summary": (
            number_panel("Active", "short", f"count(qemu_migration_status{{{ACTIVE}}}) or vector(0)"),
            number_panel(
                "Not converging",
                "short",
                f'count(qemu_migration_status{{{HOSTS_MATCHER},status="active"}}'
                f" unless on (instance, vm_uuid) {migration_gauge('remaining_seconds')}) or vector(0)",
                thresholds=((1, "orange"),),
                help="The guest dirties memory as fast as it is sent.",
            ),
            number_panel(
                "Failed",
                "short",
                f'count(qemu_migration_status{{{HOSTS_MATCHER},status="failed"}}) or vector(0)',
                thresholds=((1, "red"),),
            ),
            number_panel(
                "Longest active migration",
                "s",
                f"max({migration_gauge('elapsed_seconds')} and on (instance, vm_uuid) qemu_migration_status{{{ACTIVE}}}) or vector(0)",
            ),
        ),
        "Migrations": (
            table_panel(
                "Migrations",
                {"vm": "VM", "status": "Status", "instance": "Host", "vm_uuid": ""},
                Column(
                    "Elapsed",
                    "s",
                    f"max by (vm, status, instance, vm_uuid) (qemu_migration_status{{{HAS_STATUS}}}"
                    f" * on (instance, vm_uuid) group_left {migration_gauge('elapsed_seconds')})",
                ),
                empty=NONE,
                link=TO_VM,
            ),
            table_panel(
                "Remaining work",
                {"vm": "VM", "instance": "Host", "vm_uuid": ""},
                Column("Memory", "bytes", migration_gauge_by_vm("ram_bytes")),
                Column("Remaining", "bytes", migration_gauge_by_vm("ram_remaining_bytes")),
                Column("Remaining time", "s", migration_gauge_by_vm("remaining_seconds")),
                Column("Passes", "short", migration_gauge_by_vm("passes_total")),
                Column("Expected downtime", "s", migration_gauge_by_vm("expected_downtime_seconds")),
                Column("Downtime", "s", migration_gauge_by_vm("downtime_seconds")),
                empty=NONE,
                link=TO_VM,
            ),
        ),
        "Progress": (
            graph_panel(
                "Remaining memory", "bytes", (migration_gauge("ram_remaining_bytes"), VM), empty=NONE, link=TO_VM
            ),
            graph_panel(
                "Remaining time",
                "s",
                (migration_gauge("remaining_seconds"), VM),
                empty="no active migration converges",
                link=TO_VM,
            ),
            graph_panel("Memory passes", "short", (migration_gauge("passes_total"), VM), empty=NONE, link=TO_VM),
        ),
        "Throughput": (
            graph_panel("Sent", "Bps", (migration_gauge("throughput_bytes_per_second"), VM), empty=NONE, link=TO_VM),
            graph_panel(
                "Dirtied by the guest",
                "Bps",
                (DIRTIED, VM),
                empty=NONE,
                help="A migration does not end by itself while this exceeds the sent rate.",
                link=TO_VM,
            ),
            graph_panel(
                "vCPU throttling",
                "percentunit",
                (migration_gauge("cpu_throttle_ratio"), VM),
                empty="auto-converge is off or not active",
                link=TO_VM,
            ),
        ),
        "Downtime": (
            graph_panel(
                "Expected downtime", "s", (migration_gauge("expected_downtime_seconds"), VM), empty=NONE, link=TO_VM
            ),
            graph_panel(
                "Actual downtime",
                "s",
                (migration_gauge("downtime_seconds"), VM),
                thresholds=((1, "orange"),),
                empty="no migration has ended",
                link=TO_VM,
            ),
        ),
    },
)
