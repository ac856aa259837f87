"""The entry of the config for the domains of a libvirtd."""

import re
from typing import Annotated

from pydantic import AfterValidator

from agent.monitors.base import AllowedChanges, Discoverer, DiscovererConfig


def _uri(value: str) -> str:
    if not re.fullmatch(r"qemu(\+[a-z]+)?://\S*", value):
        raise ValueError("should be libvirt's name of a QEMU host, such as qemu:///system")
    return value


class LibvirtConfig(DiscovererConfig):
    """The domains of a libvirtd."""

    libvirt: Annotated[str, AfterValidator(_uri)]
    """libvirt's name of it, such as qemu:///system. It takes qmp-agent[libvirt]; see docs/monitors.md for permissions."""
    read_only: bool = False
    """Connect only to read: then there are no events from QEMU and no thresholds. Where nothing else is allowed, it is so in any case."""
    passthrough: bool = False
    """Ask QEMU itself, through libvirt. libvirt marks a domain as tainted for that; as allow.libvirt_passthrough, for this one."""

    def build(self, allow: AllowedChanges) -> Discoverer:
        """Return the way."""
        from agent.monitors.libvirt.discovery import LibvirtDiscoverer  # noqa: PLC0415 - with its XML, 1 MiB that a host without libvirt is spared

        passthrough = self.passthrough or allow.libvirt_passthrough
        return LibvirtDiscoverer(self.libvirt, read_only=self.read_only, passthrough=passthrough)
