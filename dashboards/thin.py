"""Dashboard of thin disks: used space, growth, time to full, and write thresholds."""

from dashboards.panels import HOSTS, HOSTS_MATCHER, TO_VM, Column, Dashboard, graph_panel, number_panel, table_panel

BY = "instance, vm, vm_uuid, device"
DISK = "{{vm}} {{device}}"
SHARE = f"qemu_block_space_used_bytes{{{HOSTS_MATCHER}}} / qemu_block_space_limit_bytes{{{HOSTS_MATCHER}}}"
HOUR, DAY, WEEK = 3600, 86400, 7 * 86400


def by_disk(series: str) -> str:
    """Return a query for a gauge of each disk, with the labels that identify a row of the table."""
    return f"max by ({BY}) (qemu_block_space_{series}{{{HOSTS_MATCHER}}})"


THIN = Dashboard(
    "qemu-thin-disks",
    "QEMU thin disks",
    "Used space, growth and time to full of thin disks, and their write thresholds.",
    (HOSTS,),
    HOSTS_MATCHER,
    {
        "Summary": (
            number_panel("Thin disks", "short", f"count(qemu_block_space_used_bytes{{{HOSTS_MATCHER}}}) or vector(0)"),
            number_panel(
                "Full within a day",
                "short",
                f"count(qemu_block_space_time_to_full_seconds{{{HOSTS_MATCHER}}} < {DAY}) or vector(0)",
                thresholds=((1, "orange"),),
            ),
            number_panel(
                "Full within an hour",
                "short",
                f"count(qemu_block_space_time_to_full_seconds{{{HOSTS_MATCHER}}} < {HOUR}) or vector(0)",
                thresholds=((1, "red"),),
            ),
            number_panel(
                "Levels exceeded",
                "short",
                f"count(qemu_block_space_exceeded_levels{{{HOSTS_MATCHER}}} > 0) or vector(0)",
                thresholds=((1, "orange"),),
            ),
            number_panel(
                "QEMU thresholds set",
                "short",
                f"count(qemu_block_space_armed_threshold_bytes{{{HOSTS_MATCHER}}}) or vector(0)",
                help="QEMU reports the write that exceeds one (alerts.disks.mode: arm).",
            ),
            number_panel(
                "Foreign thresholds",
                "short",
                f"count(qemu_block_space_threshold_foreign{{{HOSTS_MATCHER}}} == 1) or vector(0)",
                help="The agent does not overwrite another client's threshold; it compares levels at each poll instead.",
            ),
        ),
        "Disks": (
            table_panel(
                "Disks",
                {"vm": "VM", "device": "Disk", "instance": "Host", "vm_uuid": ""},
                Column("Used", "percentunit", f"max by ({BY}) ({SHARE})", ((0, "text"), (0.8, "orange"), (0.9, "red"))),
                Column("Free", "bytes", by_disk("free_bytes")),
                Column("Size", "bytes", by_disk("limit_bytes")),
                Column("Growth", "Bps", by_disk("growth_bytes_per_second")),
                Column(
                    "Time to full", "s", by_disk("time_to_full_seconds"), ((0, "red"), (DAY, "orange"), (WEEK, "text"))
                ),
                Column("Exceeded levels", "short", by_disk("exceeded_levels")),
                Column("QEMU threshold", "bytes", by_disk("armed_threshold_bytes")),
                empty="no thin disk",
                link=TO_VM,
            ),
        ),
        "Over time": (
            graph_panel(
                "Used",
                "percentunit",
                (SHARE, DISK),
                thresholds=((0.8, "orange"), (0.9, "red")),
                empty="no thin disk",
                link=TO_VM,
            ),
            graph_panel(
                "Free", "bytes", (f"qemu_block_space_free_bytes{{{HOSTS_MATCHER}}}", DISK), empty="none", link=TO_VM
            ),
        ),
        "Growth and time to full": (
            graph_panel(
                "Growth",
                "Bps",
                (f"qemu_block_space_growth_bytes_per_second{{{HOSTS_MATCHER}}}", DISK),
                help="Over the last ten minutes.",
                link=TO_VM,
            ),
            graph_panel(
                "Time to full",
                "s",
                (f"qemu_block_space_time_to_full_seconds{{{HOSTS_MATCHER}}}", DISK),
                empty="no disk is growing",
                help="At the growth of the last ten minutes.",
                link=TO_VM,
            ),
        ),
        "Write thresholds": (
            graph_panel(
                "Space below the QEMU threshold",
                "bytes",
                (
                    f"qemu_block_space_armed_threshold_bytes{{{HOSTS_MATCHER}}} - qemu_block_space_used_bytes{{{HOSTS_MATCHER}}}",
                    DISK,
                ),
                empty="no threshold set by the agent",
                link=TO_VM,
            ),
            graph_panel(
                "Thresholds of all layers, set by any client",
                "bytes",
                (f"qemu_block_layer_write_threshold_bytes{{{HOSTS_MATCHER}}} > 0", f"{DISK} {{{{layer}}}}"),
                empty="no threshold set",
                link=TO_VM,
            ),
            graph_panel(
                "Exceeded levels",
                "short",
                (f"qemu_block_space_exceeded_levels{{{HOSTS_MATCHER}}}", DISK),
                thresholds=((1, "orange"),),
                link=TO_VM,
            ),
        ),
    },
)
