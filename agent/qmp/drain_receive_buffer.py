"""Reads the last bytes that a peer sent before the connection ended, if the event loop has not read them."""

import asyncio
import contextlib
import os

MAX_BYTES = 1 << 20
"""Maximum number of bytes to read. For a Unix socket, the kernel keeps at most 208 KiB by default (`net.core.wmem_default`)."""


def drain_receive_buffer(transport: asyncio.BaseTransport) -> bytes:
    """Return the received bytes that the kernel still holds for a transport, without waiting. Call this only in `connection_lost`.

    An ending QEMU sends SHUTDOWN and closes the monitors. A command that the agent writes at that moment fails. asyncio and uvloop stop
    reading after a failed write, so SHUTDOWN stays in the kernel.
    """
    # With TLS, the bytes are encrypted, and only the transport has the keys.
    if transport.get_extra_info("ssl_object") is not None:
        return b""
    socket = transport.get_extra_info("socket")
    unread = bytearray()
    with contextlib.suppress(OSError):  # no bytes are left, or the kernel reports why the connection ended
        while len(unread) < MAX_BYTES and (data := os.read(socket.fileno(), MAX_BYTES - len(unread))):
            unread += data
    return bytes(unread)
