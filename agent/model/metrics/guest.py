"""The channel of a guest's agent."""

from agent.model.family import FLAG, TEXT, Family, Field

GUEST_AGENT = Family(
    "guest_agent",
    "query-chardev",
    "The channel of the guest agent, the virtio serial port org.qemu.guest_agent.0. QEMU reports it; the guest is not asked.",
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
        Field("client", "client_connected", FLAG, "Whether a client on the host is connected to that socket."),
    ),
    on_change=True,
)
