"""Config entry for the domains of a libvirtd."""

import re
from typing import Annotated

from pydantic import AfterValidator

from agent.monitors.base import AllowedChanges, Discoverer, DiscovererConfig


def _check_uri(value: str) -> str:
    if not re.fullmatch(r"qemu(\+[a-z]+)?://\S*", value):
        raise ValueError("should be libvirt's URI of a QEMU host, such as qemu:///system")
    return value


class LibvirtConfig(DiscovererConfig):
    """The domains of a libvirtd."""

    libvirt: Annotated[str, AfterValidator(_check_uri)]
    """libvirt's URI, such as qemu:///system. It needs qmp-agent[libvirt]; docs/monitors.md has the permissions."""
    read_only: bool = False
    """Use a read-only connection: no events from QEMU and no thresholds. The agent also uses one if libvirt permits no other."""
    passthrough: bool = False
    """Send commands through libvirt to QEMU itself; libvirt then marks the domains as tainted. allow.libvirt_passthrough does it for all
    entries."""

    def build(self, allow: AllowedChanges) -> Discoverer:
        """Return the discoverer."""
        # Imported only where it is needed, because it takes 1 MiB of memory with its XML parser.
        from agent.monitors.libvirt.discovery import LibvirtDiscoverer  # noqa: PLC0415

        passthrough = self.passthrough or allow.libvirt_passthrough
        return LibvirtDiscoverer(self.libvirt, read_only=self.read_only, passthrough=passthrough)
