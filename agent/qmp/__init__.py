"""Speaking QMP: what may be sent (commands), bytes to messages (protocol, no I/O), and a client on asyncio (client)."""
