"""Migrations: how far, how fast, and whether they come to an end."""

from dashboards.panels import EVERY, HOSTS, TO_VM, Column, Dashboard, graph, number, rows

BY = "instance, vm, vm_uuid"
VM = "{{vm}} from {{instance}}"
NONE = "no VM has migrated"
UNDER_WAY = f'{EVERY},status=~"setup|active|device|pre-switchover|postcopy-active|postcopy-paused"'


def gauge(name: str) -> str:
    """Return a gauge of migrations."""
    return f"qemu_migration_{name}{{{EVERY}}}"


def of_each(name: str) -> str:
    """Return it with the labels that the table's rows have."""
    return f"max by ({BY}) ({gauge(name)})"


DIRTIED = f"{gauge('ram_dirty_pages_per_second')} * {gauge('ram_page_bytes')}"
TOLD = f'{EVERY},status!="none"'

MIGRATIONS = Dashboard(
    "qemu-migrations",
    "QEMU migrations",
    "Live migrations as their sources tell them: how far, how fast, and whether they come to an end.",
    (HOSTS,),
    EVERY,
    {
        "At a glance": (
            number("Under way", "short", f"count(qemu_migration_status{{{UNDER_WAY}}}) or vector(0)"),
            number(
                "Do not converge",
                "short",
                f'count(qemu_migration_status{{{EVERY},status="active"}} unless on (instance, vm_uuid) {gauge("remaining_seconds")})'
                " or vector(0)",
                thresholds=((1, "orange"),),
                help="The guest dirties its memory as fast as it is sent.",
            ),
            number(
                "Failed",
                "short",
                f'count(qemu_migration_status{{{EVERY},status="failed"}}) or vector(0)',
                thresholds=((1, "red"),),
            ),
            number(
                "Longest of those under way",
                "s",
                f"max({gauge('elapsed_seconds')} and on (instance, vm_uuid) qemu_migration_status{{{UNDER_WAY}}}) or vector(0)",
            ),
        ),
        "Migrations": (
            rows(
                "Migrations",
                {"vm": "VM", "status": "Status", "instance": "Host", "vm_uuid": ""},
                Column(
                    "Elapsed",
                    "s",
                    f"max by (vm, status, instance, vm_uuid) (qemu_migration_status{{{TOLD}}}"
                    f" * on (instance, vm_uuid) group_left {gauge('elapsed_seconds')})",
                ),
                empty=NONE,
                link=TO_VM,
            ),
            rows(
                "What is left",
                {"vm": "VM", "instance": "Host", "vm_uuid": ""},
                Column("Memory", "bytes", of_each("ram_bytes")),
                Column("Remaining", "bytes", of_each("ram_remaining_bytes")),
                Column("Left", "s", of_each("remaining_seconds")),
                Column("Passes", "short", of_each("passes_total")),
                Column("Downtime, expected", "s", of_each("expected_downtime_seconds")),
                Column("Downtime", "s", of_each("downtime_seconds")),
                empty=NONE,
                link=TO_VM,
            ),
        ),
        "How far": (
            graph("Memory that remains", "bytes", (gauge("ram_remaining_bytes"), VM), empty=NONE, link=TO_VM),
            graph("Left", "s", (gauge("remaining_seconds"), VM), empty="none, or none converges", link=TO_VM),
            graph("Passes over the memory", "short", (gauge("passes_total"), VM), empty=NONE, link=TO_VM),
        ),
        "How fast": (
            graph("Sent", "Bps", (gauge("throughput_bytes_per_second"), VM), empty=NONE, link=TO_VM),
            graph(
                "Dirtied by the guest",
                "Bps",
                (DIRTIED, VM),
                empty=NONE,
                help="Where this is more than what is sent, it never ends by itself.",
                link=TO_VM,
            ),
            graph(
                "vCPUs slowed by",
                "percentunit",
                (gauge("cpu_throttle_ratio"), VM),
                empty="auto-converge is off, or not needed yet",
                link=TO_VM,
            ),
        ),
        "How long the guest stands still": (
            graph("Expected", "s", (gauge("expected_downtime_seconds"), VM), empty=NONE, link=TO_VM),
            graph(
                "In the end",
                "s",
                (gauge("downtime_seconds"), VM),
                thresholds=((1, "orange"),),
                empty="none has ended",
                link=TO_VM,
            ),
        ),
    },
)
