"""Thin disks: used space, growth, time to full, and write thresholds."""

from dashboards.panels import EVERY, HOSTS, TO_VM, Column, Dashboard, graph, number, rows

BY = "instance, vm, vm_uuid, device"
DISK = "{{vm}} {{device}}"
SHARE = f"qemu_block_space_used_bytes{{{EVERY}}} / qemu_block_space_limit_bytes{{{EVERY}}}"
HOUR, DAY, WEEK = 3600, 86400, 7 * 86400


def by_disk(series: str) -> str:
    """Return a gauge of each disk with the labels of the table's rows."""
    return f"max by ({BY}) (qemu_block_space_{series}{{{EVERY}}})"


THIN = Dashboard(
    "qemu-thin-disks",
    "QEMU thin disks",
    "Used space, growth and time to full of thin disks, and their write thresholds.",
    (HOSTS,),
    EVERY,
    {
        "Summary": (
            number("Thin disks", "short", f"count(qemu_block_space_used_bytes{{{EVERY}}}) or vector(0)"),
            number(
                "Full within a day",
                "short",
                f"count(qemu_block_space_time_to_full_seconds{{{EVERY}}} < {DAY}) or vector(0)",
                thresholds=((1, "orange"),),
            ),
            number(
                "Full within an hour",
                "short",
                f"count(qemu_block_space_time_to_full_seconds{{{EVERY}}} < {HOUR}) or vector(0)",
                thresholds=((1, "red"),),
            ),
            number(
                "Levels exceeded",
                "short",
                f"count(qemu_block_space_exceeded_levels{{{EVERY}}} > 0) or vector(0)",
                thresholds=((1, "orange"),),
            ),
            number(
                "QEMU thresholds set",
                "short",
                f"count(qemu_block_space_armed_threshold_bytes{{{EVERY}}}) or vector(0)",
                help="QEMU reports the write that exceeds one (alerts.write_threshold.mode: arm).",
            ),
            number(
                "Foreign thresholds",
                "short",
                f"count(qemu_block_space_threshold_foreign{{{EVERY}}} == 1) or vector(0)",
                help="The agent does not overwrite another client's threshold; it compares levels at each poll instead.",
            ),
        ),
        "Disks": (
            rows(
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
            graph(
                "Used",
                "percentunit",
                (SHARE, DISK),
                thresholds=((0.8, "orange"), (0.9, "red")),
                empty="no thin disk",
                link=TO_VM,
            ),
            graph("Free", "bytes", (f"qemu_block_space_free_bytes{{{EVERY}}}", DISK), empty="none", link=TO_VM),
        ),
        "Growth and time to full": (
            graph(
                "Growth",
                "Bps",
                (f"qemu_block_space_growth_bytes_per_second{{{EVERY}}}", DISK),
                help="Over the last ten minutes.",
                link=TO_VM,
            ),
            graph(
                "Time to full",
                "s",
                (f"qemu_block_space_time_to_full_seconds{{{EVERY}}}", DISK),
                empty="no disk is growing",
                help="At the growth of the last ten minutes.",
                link=TO_VM,
            ),
        ),
        "Write thresholds": (
            graph(
                "Space below the QEMU threshold",
                "bytes",
                (f"qemu_block_space_armed_threshold_bytes{{{EVERY}}} - qemu_block_space_used_bytes{{{EVERY}}}", DISK),
                empty="no threshold set by the agent",
                link=TO_VM,
            ),
            graph(
                "Thresholds of all layers, set by any client",
                "bytes",
                (f"qemu_block_layer_write_threshold_bytes{{{EVERY}}} > 0", f"{DISK} {{{{layer}}}}"),
                empty="no threshold set",
                link=TO_VM,
            ),
            graph(
                "Exceeded levels",
                "short",
                (f"qemu_block_space_exceeded_levels{{{EVERY}}}", DISK),
                thresholds=((1, "orange"),),
                link=TO_VM,
            ),
        ),
    },
)
