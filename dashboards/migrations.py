"""Live migrations: progress, throughput, convergence and downtime."""

from dashboards.panels import EVERY, HOSTS, TO_VM, Column, Dashboard, graph, number, rows

BY = "instance, vm, vm_uuid"
VM = "{{vm}} from {{instance}}"
NONE = "no VM has migrated"
ACTIVE = f'{EVERY},status=~"setup|active|device|pre-switchover|postcopy-.+"'


def gauge(name: str) -> str:
    """Return the selector of a migration gauge."""
    return f"qemu_migration_{name}{{{EVERY}}}"


def by_vm(name: str) -> str:
    """Return a migration gauge with the labels of the table's rows."""
    return f"max by ({BY}) ({gauge(name)})"


DIRTIED = f"{gauge('ram_dirty_pages_per_second')} * {gauge('ram_page_bytes')}"
KNOWN = f'{EVERY},status!="none"'

MIGRATIONS = Dashboard(
    "qemu-migrations",
    "QEMU migrations",
    "Live migrations as their sources report them: progress, throughput, convergence and downtime.",
    (HOSTS,),
    EVERY,
    {
        "Summary": (
            number("Active", "short", f"count(qemu_migration_status{{{ACTIVE}}}) or vector(0)"),
            number(
                "Not converging",
                "short",
                f'count(qemu_migration_status{{{EVERY},status="active"}} unless on (instance, vm_uuid) {gauge("remaining_seconds")})'
                " or vector(0)",
                thresholds=((1, "orange"),),
                help="The guest dirties memory as fast as it is sent.",
            ),
            number(
                "Failed",
                "short",
                f'count(qemu_migration_status{{{EVERY},status="failed"}}) or vector(0)',
                thresholds=((1, "red"),),
            ),
            number(
                "Longest active migration",
                "s",
                f"max({gauge('elapsed_seconds')} and on (instance, vm_uuid) qemu_migration_status{{{ACTIVE}}}) or vector(0)",
            ),
        ),
        "Migrations": (
            rows(
                "Migrations",
                {"vm": "VM", "status": "Status", "instance": "Host", "vm_uuid": ""},
                Column(
                    "Elapsed",
                    "s",
                    f"max by (vm, status, instance, vm_uuid) (qemu_migration_status{{{KNOWN}}}"
                    f" * on (instance, vm_uuid) group_left {gauge('elapsed_seconds')})",
                ),
                empty=NONE,
                link=TO_VM,
            ),
            rows(
                "Remaining work",
                {"vm": "VM", "instance": "Host", "vm_uuid": ""},
                Column("Memory", "bytes", by_vm("ram_bytes")),
                Column("Remaining", "bytes", by_vm("ram_remaining_bytes")),
                Column("Remaining time", "s", by_vm("remaining_seconds")),
                Column("Passes", "short", by_vm("passes_total")),
                Column("Expected downtime", "s", by_vm("expected_downtime_seconds")),
                Column("Downtime", "s", by_vm("downtime_seconds")),
                empty=NONE,
                link=TO_VM,
            ),
        ),
        "Progress": (
            graph("Remaining memory", "bytes", (gauge("ram_remaining_bytes"), VM), empty=NONE, link=TO_VM),
            graph(
                "Remaining time",
                "s",
                (gauge("remaining_seconds"), VM),
                empty="no active migration converges",
                link=TO_VM,
            ),
            graph("Memory passes", "short", (gauge("passes_total"), VM), empty=NONE, link=TO_VM),
        ),
        "Throughput": (
            graph("Sent", "Bps", (gauge("throughput_bytes_per_second"), VM), empty=NONE, link=TO_VM),
            graph(
                "Dirtied by the guest",
                "Bps",
                (DIRTIED, VM),
                empty=NONE,
                help="A migration does not end by itself while this exceeds the sent rate.",
                link=TO_VM,
            ),
            graph(
                "vCPU throttling",
                "percentunit",
                (gauge("cpu_throttle_ratio"), VM),
                empty="auto-converge is off or not active",
                link=TO_VM,
            ),
        ),
        "Downtime": (
            graph("Expected downtime", "s", (gauge("expected_downtime_seconds"), VM), empty=NONE, link=TO_VM),
            graph(
                "Actual downtime",
                "s",
                (gauge("downtime_seconds"), VM),
                thresholds=((1, "orange"),),
                empty="no migration has ended",
                link=TO_VM,
            ),
        ),
    },
)
