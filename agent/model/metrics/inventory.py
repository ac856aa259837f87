"""Devices and displays of a VM. A record is emitted when the VM is attached, and after each change."""

from agent.model.family import DETAIL, GAUGE, TEXT, Family, Field

INVENTORY = Family(
    "inventory",
    "query-pci, query-chardev and query-memdev",
    "Devices of a VM. Long lists are truncated to their first entries.",
    (),
    (
        Field("pci_devices", "pci_devices", GAUGE, "Number of PCI devices, including those behind bridges."),
        Field("pci", "pci", DETAIL, "Id, address, class, and hexadecimal vendor and device of each PCI device."),
        Field(
            "chardevs",
            "character_devices",
            DETAIL,
            "Label, target and frontend state of each character device.",
        ),
        Field(
            "memory",
            "memory_backends",
            DETAIL,
            "Id, size, NUMA policy, and the flags prealloc, share, merge, dump and reserve of each memory backend.",
        ),
    ),
    on_change=True,
)

TPM = Family(
    "tpm",
    "query-tpm",
    "A TPM of the guest.",
    ("tpm",),
    (
        Field("model", "model", TEXT, "Model that the guest sees, such as tpm-crb."),
        Field("options.type", "backend", TEXT, "Type of the backend: emulator or passthrough."),
    ),
    on_change=True,
)

_CLIENTS = Field("clients", "clients", GAUGE, "Number of connected clients.")

VNC = Family(
    "vnc",
    "query-vnc-servers",
    "A VNC display.",
    ("display",),
    (
        Field("auth", "auth", TEXT, "Authentication method."),
        Field(
            "addresses",
            "addresses",
            DETAIL,
            "Addresses that the display listens on, each with its authentication, and whether it is a websocket.",
        ),
        _CLIENTS,
        Field(
            "who",
            "client_list",
            DETAIL,
            "Connected clients: address, and the authenticated user or certificate if there is one.",
        ),
    ),
    on_change=True,
)

SPICE = Family(
    "spice",
    "query-spice",
    "The SPICE display.",
    (),
    (
        Field("auth", "auth", TEXT, "Authentication method."),
        Field("host", "address", TEXT, "Address that the display listens on."),
        Field("port", "port", GAUGE, "Port number."),
        Field("tls-port", "tls_port", GAUGE, "Port number for TLS."),
        Field(
            "mouse-mode",
            "mouse_mode",
            TEXT,
            "Side that determines the position of the mouse pointer: client or server.",
        ),
        _CLIENTS,
        Field(
            "who",
            "client_list",
            DETAIL,
            "Connected clients: address, types of the client's channels, and whether all of these channels use TLS.",
        ),
    ),
    on_change=True,
)
