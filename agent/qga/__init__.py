"""The QEMU guest agent's protocol: the commands that the agent can send, the protocol without I/O, and a client on asyncio.

Start at `commands`, which has the list of permitted commands, and at `client`. The package imports only agent.common.
"""
