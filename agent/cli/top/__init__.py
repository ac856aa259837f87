"""`qmp-agent top`: shows the VMs of a running agent in a terminal. `top` reads the agent's /overview and sends nothing to QEMU.

Start at `terminal`, which reads keys and draws the lines that `screen_state` returns. The other modules render parts of the screen.
All modules except `terminal` are pure.
"""

from agent.common.errors import SubcommandError


class TopError(SubcommandError):
    """`qmp-agent top` cannot show the VMs."""
