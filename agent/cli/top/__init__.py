"""`qmp-agent top`: shows the VMs of a running agent in a terminal. It reads /overview and queries no QEMU."""

from agent.common.errors import CommandFailedError


class TopError(CommandFailedError):
    """The VMs cannot be shown."""
