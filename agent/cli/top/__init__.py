"""`qmp-agent top`: shows the VMs of a running agent in a terminal. It reads the agent's /overview and sends nothing to QEMU."""

from agent.common.errors import SubcommandError


class TopError(SubcommandError):
    """`qmp-agent top` cannot show the VMs."""
