"""Dashboard of guests: what only guest agents and balloon drivers know, for many VMs side by side."""

from dashboards.panels import (
    HOSTS,
    HOSTS_MATCHER,
    TO_VM,
    Column,
    Dashboard,
    graph_panel,
    number_panel,
    query_variable,
    rate,
    table_panel,
)

WHERE = f'{HOSTS_MATCHER},vm=~"$vm"'
VM = "{{vm}}"
BY = "instance, vm, vm_uuid"
ENABLE = "set guest_agent.enabled, and run qemu-ga in the guest"
BALLOON = "set allow.guest_stats_interval, and load the balloon driver in the guest"
USED = f"qemu_guest_filesystem_used_bytes{{{WHERE}}} / qemu_guest_filesystem_size_bytes{{{WHERE}}}"


def gauge(series: str) -> str:
    """Return a query for a gauge of each VM, with the labels of a row."""
    return f"max by ({BY}) ({series}{{{WHERE}}})"


GUESTS = Dashboard(
    "qemu-guests",
    "QEMU guests",
    "The inside of guests: file systems, load, memory, clock, and the state of guest agents.",
    (HOSTS, query_variable("vm", "VM", f"label_values(qemu_vm_up{{{HOSTS_MATCHER}}}, vm)", many=True)),
    WHERE,
    {
        "Summary": (
            number_panel(
                "Guest agents up", "short", f'sum(qemu_guest_agent_session_state{{{WHERE},state="up"}}) or vector(0)'
            ),
            number_panel(
                "Guest agents not up",
                "short",
                f'sum(qemu_guest_agent_session_state{{{WHERE},state!="up"}}) or vector(0)',
                thresholds=((1, "orange"),),
            ),
            number_panel(
                "File systems over 90 %", "short", f"count({USED} > 0.9) or vector(0)", thresholds=((1, "orange"),)
            ),
            number_panel(
                "Guests with frozen file systems",
                "short",
                f"count(qemu_guest_freeze_frozen{{{WHERE}}} == 1) or vector(0)",
                thresholds=((1, "orange"),),
            ),
        ),
        "File systems": (
            table_panel(
                "File systems",
                {
                    "vm": "VM",
                    "mountpoint": "File system",
                    "device": "Device",
                    "type": "Type",
                    "instance": "Host",
                    "vm_uuid": "",
                },
                Column("Used", "percentunit", USED, ((0, "text"), (0.9, "orange"), (0.95, "red"))),
                Column("Free", "bytes", f"qemu_guest_filesystem_available_bytes{{{WHERE}}}"),
                Column("Size", "bytes", f"qemu_guest_filesystem_size_bytes{{{WHERE}}}"),
                empty=ENABLE,
                link=TO_VM,
                help="The file systems in guests as the guests report them. Sort by a column to see the fullest.",
            ),
        ),
        "Over time": (
            graph_panel(
                "Fullest file system of each guest",
                "percentunit",
                (f"max by (vm, vm_uuid) ({USED})", VM),
                empty=ENABLE,
                link=TO_VM,
            ),
            graph_panel("Load, 1 minute", "short", (gauge("qemu_guest_load_average_1m"), VM), empty=ENABLE, link=TO_VM),
        ),
        "Memory": (
            graph_panel(
                "Available memory",
                "percentunit",
                (f"qemu_guest_memory_available_bytes{{{WHERE}}} / qemu_guest_memory_total_bytes{{{WHERE}}}", VM),
                empty=BALLOON,
                link=TO_VM,
                help="Share of the guest's memory that it can still give to programs.",
            ),
            graph_panel(
                "Swapped out",
                "Bps",
                (rate("qemu_guest_memory_swap_out_bytes_total", WHERE, "vm, vm_uuid"), VM),
                empty=BALLOON,
                link=TO_VM,
                help="A guest that swaps out for long has too little memory.",
            ),
        ),
        "Agents": (
            table_panel(
                "Guest agents",
                {"vm": "VM", "state": "State", "instance": "Host", "vm_uuid": ""},
                Column(
                    "VMs", "short", f"sum by (instance, vm, vm_uuid, state) (qemu_guest_agent_session_state{{{WHERE}}})"
                ),
                empty=ENABLE,
                link=TO_VM,
                help="The state of the connection to each guest agent.",
            ),
            graph_panel(
                "Clock offset",
                "s",
                (gauge("qemu_guest_clock_offset_seconds"), VM),
                empty=ENABLE,
                link=TO_VM,
                help="How far guests' clocks differ from the host's. A clock that drifts breaks TLS, logs and clusters.",
            ),
        ),
    },
)
