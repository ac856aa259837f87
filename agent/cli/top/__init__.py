"""`qmp-agent top`: shows the VMs of a running agent in a terminal. It reads the agent's /overview and sends nothing to QEMU.

Start at `terminal`, which reads keys and draws what `screen_state` returns; the other modules are its parts. Pure but for `terminal`.
"""

from agent.common.errors import SubcommandError


class TopError(SubcommandError):
    """`qmp-agent top` cannot show the VMs."""
