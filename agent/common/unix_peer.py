"""The process at the other end of a Unix socket."""

import asyncio
import socket
import struct


def peer_pid(transport: asyncio.BaseTransport | None) -> int | None:
    """Return the id of the process at the other end of a Unix socket; None if it is unknown.

    A client gets the id of the process that listens at the socket's path.
    """
    sock = transport.get_extra_info("socket") if transport is not None else None
    if sock is None or sock.family != socket.AF_UNIX:
        return None
    pid, _, _ = struct.unpack("3i", sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
    return pid or None  # 0 means that the process is in another pid namespace
