"""The values of hosts and VMs from which `qmp-agent top` draws its screen."""

from typing import Any


def vm(name: str, **more: Any) -> dict[str, Any]:
    """Return a running VM with further values."""
    return {
        "uuid": f"uuid-{name}",
        "name": name,
        "state": "up",
        "status": "running",
        "qemu": "7.2.22",
        "monitor": "/run/x",
    } | more


def host(*vms: dict[str, Any]) -> dict[str, Any]:
    """Return a host without alerts that has these VMs."""
    agent = {"host": "hv7", "unready_reasons": []}
    return {"vms": {entry["uuid"]: entry for entry in vms}, "alerts": [], "monitors": [], "agent": agent}
