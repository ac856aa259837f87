"""`qmp-agent top`: this host's VMs at a terminal, out of the running agent's /overview; it asks no QEMU."""

from agent.common.errors import CommandFailedError


class TopError(CommandFailedError):
    """There is nothing to show; the text says why, for people."""
