"""The QEMU guest agent's protocol: the commands that the agent can send, the protocol without I/O, and a client on asyncio."""
