"""Checks whether the agent's user may connect to a socket, and returns the shell commands that grant the permission.

The kernel decides: the check runs with the user and groups of the agent.
"""

import contextlib
import grp
import os
import pwd
import re
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from agent.host.qemu_processes import PROC, list_pids, read_file
from agent.host.unix_and_tcp_sockets import is_agent_process

AGENT_USER_NAME = "qmp-agent"


@dataclass(frozen=True, slots=True)
class User:
    """A user and its groups.

    Attributes:
        name: login name, or the uid as text; empty if unknown.
        uid: user id.
        gids: group ids.
    """

    name: str
    uid: int
    gids: frozenset[int]


def find_agent_user(name: str | None = None, proc: Path = PROC) -> User:
    """Return the user of a running agent, or of the agent that will run.

    Args:
        name: the user's name. None for the first existing user of three: the user of a running agent, the user `qmp-agent`, and the
            current user.
        proc: the /proc directory.

    Raises:
        KeyError: the host has no user with the name `name`.
    """
    running = next((pid for pid in list_pids(proc) if name is None and is_agent_process(pid, proc)), None)
    if running is not None and (user := _read_process_user(running, proc)) is not None:
        return user
    try:
        entry = pwd.getpwnam(name or AGENT_USER_NAME)
    except KeyError:
        if name is not None:
            raise
    else:
        return User(entry.pw_name, entry.pw_uid, frozenset(os.getgrouplist(entry.pw_name, entry.pw_gid)))
    # The user of the agent's Debian package does not exist.
    return User(_user_name(os.geteuid()), os.geteuid(), frozenset({os.getegid(), *os.getgroups()}))


def read_process_user(pid: int, proc: Path = PROC) -> User:
    """Return the user of a process; a user with an empty name if unknown."""
    return _read_process_user(pid, proc) or User("", -1, frozenset())


def _read_process_user(pid: int, proc: Path) -> User | None:
    status = read_file(proc / str(pid) / "status").decode("ascii", "replace")
    ids = {match[1]: [int(word) for word in match[2].split()] for match in _ID_LINES.finditer(status)}
    if not ids.get("Uid") or not ids.get("Gid"):
        return None
    return User(_user_name(ids["Uid"][1]), ids["Uid"][1], frozenset({ids["Gid"][1], *ids.get("Groups", ())}))


_ID_LINES = re.compile(r"^(Uid|Gid|Groups):([\t 0-9]*)$", re.MULTILINE)


def _user_name(uid: int) -> str:
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return str(uid)


def find_paths_denied_to_user(path: str, user: User) -> list[Path]:
    """Return the parent directories that a user may not enter, and the socket itself if the user may not connect to it.

    Args:
        path: the absolute path of the socket.
        user: the user.

    Returns:
        An empty list if nothing blocks the user. The list is also empty if the current user is neither root nor `user`, because only
        these two users can run the check.
    """
    if os.geteuid() not in (0, user.uid):
        return []
    return [each for each in (*reversed(Path(path).parents), Path(path)) if not _has_access(each, user)]


def _has_access(path: Path, user: User) -> bool:
    """Return whether a user may enter a directory or connect to a socket. Parent directories are not checked."""
    try:
        descriptor = os.open(path, os.O_PATH | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        mode = os.X_OK if stat.S_ISDIR(os.fstat(descriptor).st_mode) else os.W_OK
        with _act_as(user):
            return os.access(f"/proc/self/fd/{descriptor}", mode, effective_ids=True)
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def _act_as(user: User) -> Iterator[None]:
    """Run the `with` block with the effective user and groups of another user. Only root can switch to another user."""
    if os.geteuid() == user.uid:
        yield
        return
    groups, gid = os.getgroups(), os.getegid()
    try:
        os.setgroups(sorted(user.gids))
        os.setegid(min(user.gids))
        os.seteuid(user.uid)
        yield
    finally:
        os.seteuid(0)
        os.setgroups(groups)
        os.setegid(gid)


def describe_denial(path: Path, user: User) -> str:
    """Return a text for the operator that names the permission that a user lacks on a path."""
    try:
        info = path.stat()
    except OSError as error:
        return f"{path}: {error.strerror}"
    verb = "enter" if stat.S_ISDIR(info.st_mode) else "connect to"
    group = _group_name(info.st_gid)
    mode = stat.S_IMODE(info.st_mode)
    return f"{user.name} may not {verb} {path} ({_user_name(info.st_uid)}:{group} {mode:04o})"


def fix_commands(path: Path, user: User, *, recreated: bool = True) -> list[str]:
    """Return the shell commands that let a user enter a directory or connect to a socket; empty if the path does not exist.

    Args:
        path: the directory or the socket.
        user: the user.
        recreated: whether each start of the VM creates the socket again.
    """
    try:
        info = path.stat()
    except OSError:
        return []
    directory = stat.S_ISDIR(info.st_mode)
    if info.st_gid and info.st_mode & (stat.S_IXGRP if directory else stat.S_IWGRP):
        return [f"usermod -aG {_group_name(info.st_gid)} {user.name}    # then restart the agent"]
    if directory:
        return [f"setfacl -m u:{user.name}:x {path}"]
    # A default ACL on the directory does not help: Linux applies the creator's umask to a new socket (unix_bind).
    return [f"setfacl -m u:{user.name}:rw {path}{'    # again after each start of the VM' if recreated else ''}"]


def _group_name(gid: int) -> str:
    try:
        return grp.getgrgid(gid).gr_name
    except KeyError:
        return str(gid)
