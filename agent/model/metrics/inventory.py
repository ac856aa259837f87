"""What a VM is made of, and who looks at its screen. Told at attach and when it is another."""

from agent.model.family import DETAIL, GAUGE, TEXT, Family, Field

INVENTORY = Family(
    "inventory",
    "query-pci, query-chardev and query-memdev",
    "What a VM is made of; lists are cut at some dozens, of which there are the first.",
    (),
    (
        Field("pci_devices", "pci_devices", GAUGE, "PCI devices, those behind bridges too."),
        Field("pci", "pci", DETAIL, "Each PCI device's id, address, class, and vendor and device in hexadecimal."),
        Field(
            "chardevs",
            "character_devices",
            DETAIL,
            "Each character device's label, where it leads, and whether its guest's side is open.",
        ),
        Field("memory", "memory_backends", DETAIL, "Each memory backend's id, size and NUMA policy."),
    ),
    on_change=True,
)

TPM = Family(
    "tpm",
    "query-tpm",
    "A TPM.",
    ("tpm",),
    (
        Field("model", "model", TEXT, "What the guest sees, such as tpm-crb."),
        Field("options.type", "backend", TEXT, "What is behind it: emulator or passthrough."),
    ),
    on_change=True,
)

_CLIENTS = Field("clients", "clients", GAUGE, "How many are connected.")

VNC = Family(
    "vnc",
    "query-vnc-servers",
    "A VNC display.",
    ("display",),
    (
        Field("auth", "auth", TEXT, "How clients show who they are."),
        Field("addresses", "addresses", DETAIL, "Where it listens."),
        _CLIENTS,
        Field("who", "connected", DETAIL, "Who is connected: address, and name where the client had to show one."),
    ),
    on_change=True,
)

SPICE = Family(
    "spice",
    "query-spice",
    "The SPICE display.",
    (),
    (
        Field("auth", "auth", TEXT, "How clients show who they are."),
        Field("host", "address", TEXT, "Where it listens."),
        Field("port", "port", GAUGE, "Its port."),
        Field("tls-port", "tls_port", GAUGE, "Its port for TLS."),
        Field("mouse-mode", "mouse_mode", TEXT, "Whose the mouse pointer is: client or server."),
        _CLIENTS,
        Field("who", "connected", DETAIL, "The addresses of those who are connected."),
    ),
    on_change=True,
)
