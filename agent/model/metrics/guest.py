"""Families about the inside of a guest: the channel of its guest agent, and the values that the guest agent reports.

The administrator of a guest can make its guest agent report any value. Only the channel's values come from QEMU.
"""

from agent.model.family import COUNTER, DETAIL, FLAG, GAUGE, NAME, STATE, TEXT, Family, Field, Unit

GUEST_AGENT = Family(
    "guest_agent",
    "query-chardev",
    "The channel of the guest agent, the virtio serial port org.qemu.guest_agent.0. QEMU reports the channel's state, so the agent "
    "sends no command to the guest.",
    (),
    (
        Field(
            "frontend-open",
            "connected",
            FLAG,
            "Whether a program in the guest has opened the channel, as a running guest agent does.",
        ),
        Field("label", "chardev", TEXT, "Id of the channel's character device."),
        Field("socket", "socket", TEXT, "Unix socket of the channel on the host, if QEMU listens on one."),
        Field("client", "client_connected", FLAG, "Whether a client on the host is connected to the channel's socket."),
    ),
    on_change=True,
)

GUEST_AGENT_SESSION = Family(
    "guest_agent_session",
    "guest-info",
    "The agent's connection to the guest agent, if the config enables it.",
    (),
    (
        Field(
            "state",
            "state",
            STATE,
            "State: absent, suspended, connecting, up, unresponsive, busy or denied.",
        ),
        Field("reason", "reason", TEXT, "Cause of the state."),
        Field("version", "version", NAME, "Version of the guest agent."),
        Field("missing", "missing_commands", DETAIL, "Commands that the guest agent lacks or the guest forbids."),
    ),
    on_change=True,
    from_host_or_agent=True,
)

GUEST_FILESYSTEM = Family(
    "guest_filesystem",
    "guest-get-fsinfo",
    "A file system that is mounted in the guest. File systems that are always full or always empty, such as squashfs and tmpfs, are "
    "left out.",
    ("mountpoint", "device", "type"),
    (
        Field(
            "total-bytes",
            "size_bytes",
            GAUGE,
            "Size in bytes without the part that is reserved for root (guest agent 3.0).",
        ),
        Field("used-bytes", "used_bytes", GAUGE, "Number of used bytes (guest agent 3.0)."),
        Field("available-bytes", "available_bytes", GAUGE, "Number of bytes that users can still write."),
        Field(
            "total-bytes-privileged",
            "privileged_size_bytes",
            GAUGE,
            "Size in bytes with the part that is reserved for root (guest agent 9.1).",
        ),
        Field("disks", "disks", DETAIL, "Disks below the file system: device, serial number and bus."),
    ),
    from_guest=True,
)

GUEST_LOAD = Family(
    "guest_load",
    "guest-get-load",
    "Load average of the guest (guest agent 10.0).",
    (),
    (
        Field("load1m", "average_1m", GAUGE, "Average number of runnable tasks in the last minute."),
        Field("load5m", "average_5m", GAUGE, "Average number of runnable tasks in the last five minutes."),
        Field("load15m", "average_15m", GAUGE, "Average number of runnable tasks in the last fifteen minutes."),
    ),
    from_guest=True,
)


def _cpu_field(state: str, text: str) -> Field:
    help_text = f"Total time of all vCPUs {text}, in seconds (guest agent 7.1)."
    return Field(state, f"{state}_seconds_total", COUNTER, help_text, Unit.MILLISECONDS)


GUEST_CPU = Family(
    "guest_cpu",
    "guest-get-cpustats",
    "CPU time as the guest's kernel counts it, summed over all vCPUs.",
    (),
    (
        Field("cpus", "cpus", GAUGE, "Number of vCPUs that the guest uses."),
        _cpu_field("user", "in user mode"),
        _cpu_field("nice", "in user mode with low priority"),
        _cpu_field("system", "in the kernel"),
        _cpu_field("idle", "without a task to run"),
        _cpu_field("iowait", "without a task to run, while a task waits for storage"),
        _cpu_field("irq", "for interrupts"),
        _cpu_field("softirq", "for deferred interrupt work"),
        _cpu_field("steal", "in which the host ran something else"),
    ),
    from_guest=True,
)

GUEST_DISK = Family(
    "guest_disk",
    "guest-get-diskstats",
    "A block device of the guest, as the guest's kernel counts it (guest agent 7.1).",
    ("device",),
    (
        Field("read-sectors", "read_bytes_total", COUNTER, "Total number of bytes read.", Unit.SECTORS),
        Field("write-sectors", "write_bytes_total", COUNTER, "Total number of bytes written.", Unit.SECTORS),
        Field("read-ios", "reads_total", COUNTER, "Total number of reads."),
        Field("write-ios", "writes_total", COUNTER, "Total number of writes."),
        Field("read-ticks", "read_seconds_total", COUNTER, "Total time of all reads in seconds.", Unit.MILLISECONDS),
        Field("write-ticks", "write_seconds_total", COUNTER, "Total time of all writes in seconds.", Unit.MILLISECONDS),
        Field(
            "total-ticks",
            "busy_seconds_total",
            COUNTER,
            "Total time in seconds with at least one request in flight.",
            Unit.MILLISECONDS,
        ),
    ),
    from_guest=True,
)

GUEST_OS = Family(
    "guest_os",
    "guest-get-osinfo, guest-get-host-name and guest-get-timezone",
    "Operating system of the guest.",
    (),
    (
        Field("host-name", "hostname", NAME, "Host name (guest agent 2.10)."),
        Field("pretty-name", "name", NAME, "Name of the operating system (guest agent 2.10)."),
        Field("kernel-release", "kernel", NAME, "Release of the kernel (guest agent 2.10)."),
        Field("id", "distribution", TEXT, "Identifier of the distribution, such as debian or mswindows."),
        Field("version-id", "distribution_version", TEXT, "Version of the distribution."),
        Field("variant-id", "variant", TEXT, "Variant of the distribution."),
        Field("kernel-version", "kernel_version", TEXT, "Version text of the kernel."),
        Field("machine", "machine", TEXT, "Hardware name, such as x86_64."),
        Field("zone", "timezone", TEXT, "Name of the time zone."),
        Field("offset", "utc_offset_seconds", GAUGE, "Offset of the guest's time zone from UTC in seconds."),
    ),
    on_change=True,
    from_guest=True,
)


def _traffic_fields(direction: str, verb: str) -> tuple[Field, ...]:
    short = direction[:2]
    return (
        Field(f"statistics.{short}-bytes", f"{short}_bytes_total", COUNTER, f"Total number of bytes {verb}."),
        Field(f"statistics.{short}-packets", f"{short}_packets_total", COUNTER, f"Total number of packets {verb}."),
        Field(
            f"statistics.{short}-errs",
            f"{short}_errors_total",
            COUNTER,
            f"Total number of errors while packets were {verb}.",
        ),
        Field(
            f"statistics.{short}-dropped",
            f"{short}_dropped_total",
            COUNTER,
            f"Total number of packets that were dropped and not {verb}.",
        ),
    )


GUEST_INTERFACE = Family(
    "guest_interface",
    "guest-network-get-interfaces",
    "Traffic of a network interface, as the guest counts it, without the loopback interface (guest agent 2.11).",
    ("interface",),
    (*_traffic_fields("rx", "received"), *_traffic_fields("tx", "sent")),
    from_guest=True,
)

GUEST_ADDRESS = Family(
    "guest_address",
    "guest-network-get-interfaces",
    "Addresses of a network interface of the guest, without the loopback interface.",
    ("interface",),
    (
        Field("ipv4", "ipv4", NAME, "First IPv4 address that is not link-local."),
        Field("ipv6", "ipv6", NAME, "First IPv6 address that is not link-local."),
        Field("hardware-address", "mac", TEXT, "Hardware address."),
        Field("addresses", "addresses", DETAIL, "All addresses, each with the length of its prefix."),
    ),
    on_change=True,
    from_guest=True,
)

GUEST_USERS = Family(
    "guest_users",
    "guest-get-users",
    "Users of the guest.",
    (),
    (Field("count", "logged_in", GAUGE, "Number of users that are logged in (guest agent 2.10)."),),
    from_guest=True,
)

GUEST_FREEZE = Family(
    "guest_freeze",
    "guest-fsfreeze-status",
    "Whether the guest's file systems are frozen, as during a snapshot.",
    (),
    (Field("frozen", "frozen", FLAG, "Whether the file systems are frozen, so that writes wait until a thaw."),),
    on_change=True,
    from_guest=True,
)

GUEST_CLOCK = Family(
    "guest_clock",
    "guest-get-time",
    "The guest's clock.",
    (),
    (
        Field(
            "offset",
            "offset_seconds",
            GAUGE,
            "Time in seconds by which the guest's clock is ahead of the host's; negative if behind.",
        ),
        Field(
            "uncertainty",
            "uncertainty_seconds",
            GAUGE,
            "Maximum error of the offset in seconds: half of the time between the command and the reply.",
        ),
    ),
    from_guest=True,
)
