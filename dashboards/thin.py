"""Thin disks: how full they are, how fast they grow, and who warns of it."""

from dashboards.panels import EVERY, HOSTS, TO_VM, Column, Dashboard, graph, number, rows

BY = "instance, vm, vm_uuid, device"
DISK = "{{vm}} {{device}}"
SHARE = f"qemu_block_space_used_bytes{{{EVERY}}} / qemu_block_space_limit_bytes{{{EVERY}}}"
HOUR, DAY, WEEK = 3600, 86400, 7 * 86400


def of_each(series: str) -> str:
    """Return a gauge of each disk, with the labels that the table's rows have."""
    return f"max by ({BY}) (qemu_block_space_{series}{{{EVERY}}})"


THIN = Dashboard(
    "qemu-thin-disks",
    "QEMU thin disks",
    "How full thin disks are, how fast they grow, how long that lasts, and the write thresholds that warn of it.",
    (HOSTS,),
    EVERY,
    {
        "At a glance": (
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
                "Past a level",
                "short",
                f"count(qemu_block_space_exceeded_levels{{{EVERY}}} > 0) or vector(0)",
                thresholds=((1, "orange"),),
            ),
            number(
                "Thresholds armed",
                "short",
                f"count(qemu_block_space_armed_threshold_bytes{{{EVERY}}}) or vector(0)",
                help="QEMU itself tells the moment that a write passes them (alerts.write_threshold.mode: arm).",
            ),
            number(
                "Thresholds of others",
                "short",
                f"count(qemu_block_space_threshold_foreign{{{EVERY}}} == 1) or vector(0)",
                help="A block node has one threshold; one that is somebody else's is left alone, and the level is watched at each poll.",
            ),
        ),
        "Disks": (
            rows(
                "Disks",
                {"vm": "VM", "device": "Disk", "instance": "Host", "vm_uuid": ""},
                Column("Used", "percentunit", f"max by ({BY}) ({SHARE})", ((0, "text"), (0.8, "orange"), (0.9, "red"))),
                Column("Headroom", "bytes", of_each("free_bytes")),
                Column("Size", "bytes", of_each("limit_bytes")),
                Column("Growth", "Bps", of_each("growth_bytes_per_second")),
                Column("Full in", "s", of_each("time_to_full_seconds"), ((0, "red"), (DAY, "orange"), (WEEK, "text"))),
                Column("Levels past", "short", of_each("exceeded_levels")),
                Column("Threshold at", "bytes", of_each("armed_threshold_bytes")),
                empty="no disk is thin",
                link=TO_VM,
            ),
        ),
        "Over time": (
            graph(
                "Used",
                "percentunit",
                (SHARE, DISK),
                thresholds=((0.8, "orange"), (0.9, "red")),
                empty="no disk is thin",
                link=TO_VM,
            ),
            graph("Headroom", "bytes", (f"qemu_block_space_free_bytes{{{EVERY}}}", DISK), empty="none", link=TO_VM),
        ),
        "How long it lasts": (
            graph(
                "Growth",
                "Bps",
                (f"qemu_block_space_growth_bytes_per_second{{{EVERY}}}", DISK),
                help="Over the last ten minutes.",
                link=TO_VM,
            ),
            graph(
                "Full in",
                "s",
                (f"qemu_block_space_time_to_full_seconds{{{EVERY}}}", DISK),
                empty="none grows",
                help="At that rate.",
                link=TO_VM,
            ),
        ),
        "Write thresholds": (
            graph(
                "From the highest write to the armed threshold",
                "bytes",
                (f"qemu_block_space_armed_threshold_bytes{{{EVERY}}} - qemu_block_space_used_bytes{{{EVERY}}}", DISK),
                empty="none is armed",
                link=TO_VM,
            ),
            graph(
                "Set on a layer, by anybody",
                "bytes",
                (f"qemu_block_layer_write_threshold_bytes{{{EVERY}}} > 0", f"{DISK} {{{{layer}}}}"),
                empty="none is set",
                link=TO_VM,
            ),
            graph(
                "Levels past",
                "short",
                (f"qemu_block_space_exceeded_levels{{{EVERY}}}", DISK),
                thresholds=((1, "orange"),),
                link=TO_VM,
            ),
        ),
    },
)
