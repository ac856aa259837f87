"""QMP: the commands that the agent can send, the protocol without I/O, and a client on asyncio.

Start at `commands`, which has the list of permitted commands, and at `client`, which uses `protocol` and `frames`. The package imports
only agent.common. agent/session/supervisor.py opens the connections and decides whether to attach to a QEMU.
"""
