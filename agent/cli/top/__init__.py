"""`qmp-agent top`: this host's VMs at a terminal, out of the running agent's /overview; it asks no QEMU."""

from agent.common.errors import FailedError


class TopError(FailedError):
    """There is nothing to show; the text says why, for people."""
