"""Devices and displays of a VM. A record is emitted when the VM is attached, and after each change."""

from agent.model.family import DETAIL, GAUGE, TEXT, Family, Field

INVENTORY = Family(
    "inventory",
    "query-pci, query-chardev and query-memdev",
    "Devices of a VM. Long lists are truncated to their first entries.",
    (),
    (
        Field("pci_devices", "pci_devices", GAUGE, "Number of PCI devices, including those behind bridges."),
        Field("pci", "pci", DETAIL, "Each PCI device: id, address, class, and hexadecimal ids of vendor and device."),
        Field(
            "chardevs",
            "character_devices",
            DETAIL,
            "Each character device: label, target and frontend state.",
        ),
        Field(
            "memory",
            "memory_backends",
            DETAIL,
            "Each memory backend: id, size, NUMA policy, and the flags prealloc, share, merge, dump and reserve.",
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
            "Each address that the display listens on, with the authentication method, and whether clients use a websocket.",
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
            "Mouse mode: `client` if the client determines the position of the pointer, otherwise `server`.",
        ),
        _CLIENTS,
        Field(
            "who",
            "client_list",
            DETAIL,
            "Connected clients: address, types of the channels, and whether all channels use TLS.",
        ),
    ),
    on_change=True,
)
