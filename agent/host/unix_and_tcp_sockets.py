"""Sockets of this host and the processes that have them open, from the kernel's sock_diag (linux/unix_diag.h) and /proc.

/proc/PID/fd shows which process has a socket open. Only root can read /proc/PID/fd of all processes. Processes whose /proc/PID/fd the
agent cannot read are left out.
"""

import contextlib
import ipaddress
import os
import re
import socket
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from agent.host.qemu_processes import PROC, list_pids, read_command_line, read_file

_NETLINK_SOCK_DIAG = 4
_SOCK_DIAG_BY_FAMILY = 20
_REQUEST_DUMP = 0x301  # NLM_F_REQUEST | NLM_F_DUMP
_SHOW_NAME_PEER = 1 | 4  # UDIAG_SHOW_NAME | UDIAG_SHOW_PEER
_DONE, _ERROR = 3, 2  # NLMSG_DONE, NLMSG_ERROR
_NAME, _PEER = 0, 2  # UNIX_DIAG_NAME, UNIX_DIAG_PEER
ESTABLISHED = 1
"""The kernel's number of the state of a connected socket (TCP_ESTABLISHED)."""
_DEADLINE_SECONDS = 5.0
_MAX_SOCKETS = 1_000_000
"""Maximum number of Unix sockets to read. A busy host has some thousands."""

AGENT_PROGRAM_NAME = "qmp-agent"
"""The name of the agent's program."""

_INTERPRETER_NAME = re.compile(r"python[0-9.]*|perl|ruby|(ba|da)?sh")


@dataclass(frozen=True, slots=True)
class SocketTableEntry:
    """One socket.

    Attributes:
        state: the socket's state as the kernel's number, such as 1 for `ESTABLISHED`. Unix sockets use the same numbers as TCP sockets.
        address: the path that the socket is bound to, or `tcp:PORT`.
        peer: inode of the socket at the other end; 0 if the other end is not on this host.
        remote: `tcp:PORT` of the other end; empty for a Unix socket.
    """

    state: int
    address: str
    peer: int = 0
    remote: str = ""


SocketTable = Mapping[int, SocketTableEntry]
"""Sockets by inode."""


def read_unix_and_tcp_sockets(proc: Path = PROC) -> SocketTable:
    """Return all Unix and TCP sockets that the kernel lists, by inode. The call blocks for some milliseconds."""
    table = dict(_parse_tcp_sockets(read_file(proc / "net" / "tcp"), read_file(proc / "net" / "tcp6")))
    with contextlib.suppress(OSError):
        table |= _read_unix_sockets()
    return table


def replace_var_run(path: str) -> str:
    """Return a path with /run in place of /var/run, so that both paths of a socket are equal."""
    return "/run/" + path.removeprefix("/var/run/") if path.startswith("/var/run/") else path


def _read_unix_sockets() -> dict[int, SocketTableEntry]:
    """Return the Unix sockets of this network namespace, by inode.

    Raises:
        OSError: the kernel refused the request, or did not answer in time.
    """
    table: dict[int, SocketTableEntry] = {}
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, _NETLINK_SOCK_DIAG) as netlink:
        netlink.settimeout(_DEADLINE_SECONDS)
        request = struct.pack("=BBHIIIII", socket.AF_UNIX, 0, 0, 0xFFFFFFFF, 0, _SHOW_NAME_PEER, 0xFFFFFFFF, 0xFFFFFFFF)
        header = struct.pack("=IHHII", 16 + len(request), _SOCK_DIAG_BY_FAMILY, _REQUEST_DUMP, 1, 0)
        netlink.send(header + request)
        while len(table) < _MAX_SOCKETS:
            for kind, body in _netlink_messages(netlink.recv(1 << 16)):
                if kind == _DONE:
                    return table
                if kind == _ERROR:
                    raise OSError(-struct.unpack_from("=i", body)[0], "the kernel refused the sock_diag request")
                inode, entry = _parse_entry(body)
                table[inode] = entry
    return table


def _netlink_messages(data: bytes) -> Iterator[tuple[int, bytes]]:
    at = 0
    while at + 16 <= len(data):
        length, kind = struct.unpack_from("=IH", data, at)
        if length < 16:
            return
        yield kind, data[at + 16 : at + length]
        at += (length + 3) & ~3


def _parse_entry(body: bytes) -> tuple[int, SocketTableEntry]:
    state, inode = struct.unpack_from("=xxBxI", body)
    path, peer, at = "", 0, 16
    while at + 4 <= len(body):
        length, kind = struct.unpack_from("=HH", body, at)
        if length < 4:
            break
        value = body[at + 4 : at + length]
        if kind == _NAME:
            path = value.rstrip(b"\0").decode("utf-8", "backslashreplace")
        elif kind == _PEER:
            (peer,) = struct.unpack_from("=I", value)
        at += (length + 3) & ~3
    return inode, SocketTableEntry(state, replace_var_run(path), peer)


def _parse_tcp_sockets(*tables: bytes) -> Iterator[tuple[int, SocketTableEntry]]:
    """Yield the inode and the entry of each socket in /proc/net/tcp and /proc/net/tcp6."""
    rows = [line.split() for table in tables for line in table.decode("ascii", "replace").splitlines()[1:]]
    connections = [
        (_parse_endpoint(row[1]), _parse_endpoint(row[2]), int(row[3], 16), int(row[9])) for row in rows if len(row) > 9
    ]
    inodes = {(local, remote): inode for local, remote, _, inode in connections}
    for local, remote, state, inode in connections:
        yield inode, SocketTableEntry(state, f"tcp:{local[1]}", inodes.get((remote, local), 0), f"tcp:{remote[1]}")


def _parse_endpoint(text: str) -> tuple[str, int]:
    """Parse an address and port such as `0100007F:115C`. An IPv4-mapped address becomes IPv4.

    The address consists of words of four bytes in host byte order.
    """
    digits, _, port = text.partition(":")
    words = [int(digits[at : at + 8], 16) for at in range(0, len(digits), 8)]
    address = ipaddress.ip_address(b"".join(struct.pack("=I", word) for word in words))
    return str(getattr(address, "ipv4_mapped", None) or address), int(port, 16)


def socket_inodes(pid: int, proc: Path = PROC) -> dict[int, int] | None:
    """Return the inodes of a process's sockets by file descriptor; None if the agent may not read the descriptors."""
    inodes = {}
    directory = proc / str(pid) / "fd"
    try:
        names = os.listdir(directory)  # noqa: PTH208 - names, not paths
    except OSError:
        return None
    for name in names:
        with contextlib.suppress(OSError):
            target = os.readlink(directory / name)  # noqa: PTH115 - text, not a path
            if match := re.fullmatch(r"socket:\[([0-9]+)\]", target):
                inodes[int(name)] = int(match[1])
    return inodes


def find_pids_by_socket_inode(inodes: set[int], proc: Path = PROC) -> Mapping[int, int]:
    """Return the pids of the processes that have these sockets open, by inode. Sockets without a visible process are left out."""
    pids_by_inode: dict[int, int] = {}
    for pid in list_pids(proc) if inodes else ():
        pids_by_inode |= dict.fromkeys(inodes.intersection((socket_inodes(pid, proc) or {}).values()), pid)
    return pids_by_inode


def program_name(argv: list[str]) -> str:
    """Return a process's name for the operator: the name of its executable, or of the script that an interpreter runs."""
    words = [os.path.basename(word) for word in argv if word and not word.startswith("-")]  # noqa: PTH119 - any text
    return (
        (words[1] if len(words) > 1 and _INTERPRETER_NAME.fullmatch(words[0]) else words[0]) if words else "a process"
    )


def is_agent_process(pid: int, proc: Path = PROC) -> bool:
    """Return whether a process is a running agent."""
    argv = read_command_line(pid, proc)
    return program_name(argv) == AGENT_PROGRAM_NAME and not {"run", "demo"}.isdisjoint(argv)
