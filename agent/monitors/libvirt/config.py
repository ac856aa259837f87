"""Config entry for the domains of a libvirtd."""

import re
from typing import Annotated

from pydantic import AfterValidator, Field

from agent.monitors.base import AllowedChanges, Discoverer, DiscovererConfig


def _check_uri(value: str) -> str:
    if value != AUTO and not re.fullmatch(r"qemu(\+[a-z]+)?://\S*", value):
        raise ValueError("should be auto, or libvirt's URI of a QEMU host, such as qemu:///system")
    return value


AUTO = "auto"
"""Value of the config key `libvirt` that stands for all libvirt daemons on this host."""


class LibvirtConfig(DiscovererConfig):
    """The domains of a libvirtd, or of all daemons of libvirt on this host."""

    libvirt: Annotated[str, AfterValidator(_check_uri)]
    """libvirt's URI, such as qemu:///system, or `auto` for all daemons on this host and in its containers.

    The entry needs qmp-agent[libvirt]. docs/reference/monitors.md has the permissions.
    """
    read_only: bool = False
    """Use a read-only connection, without events from QEMU and without thresholds.

    The agent also does so if libvirt permits no other connection.
    """
    passthrough: bool = False
    """Send commands to QEMU itself, through libvirt. libvirt then taints the domains. allow.libvirt_passthrough does so for all entries.
    """

    containers: Annotated[tuple[str, ...], Field(min_length=1, max_length=100)] = ("*",)
    """For `auto`: name patterns of the containers whose libvirt daemons are used, such as virt-launcher-*. `host` is the host itself."""

    def build_discoverer(self, allow: AllowedChanges) -> Discoverer:
        """Return the discoverer."""
        # Import late, because the module and its XML parser take 1 MiB of memory.
        from agent.monitors.libvirt.discovery import LibvirtDiscoverer  # noqa: PLC0415

        passthrough = self.passthrough or allow.libvirt_passthrough
        if self.libvirt == AUTO:
            from agent.monitors.libvirt.daemon_discovery import LibvirtDaemonDiscoverer  # noqa: PLC0415 - as above

            return LibvirtDaemonDiscoverer(self.containers, read_only=self.read_only, passthrough=passthrough)
        return LibvirtDiscoverer(self.libvirt, read_only=self.read_only, passthrough=passthrough)
