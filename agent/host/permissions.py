"""Whether the agent's user may connect to a socket, asked of the kernel as that user, and what would let it."""

import contextlib
import grp
import os
import pwd
import re
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from agent.host.qemu_processes import PROC, pids, read
from agent.host.sockets import is_agent

USER = "qmp-agent"


@dataclass(frozen=True, slots=True)
class User:
    """Whom the agent runs as."""

    name: str
    uid: int
    gids: frozenset[int]


def agents_user(name: str | None = None, proc: Path = PROC) -> User:
    """Return the user of that name; without one, who a running agent is, or else who it will be.

    Raises:
        KeyError: there is none of that name.
    """
    running = next((pid for pid in pids(proc) if name is None and is_agent(pid, proc)), None)
    if running is not None and (found := _of_process(running, proc)) is not None:
        return found
    try:
        entry = pwd.getpwnam(name or USER)
    except KeyError:
        if name is not None:
            raise
    else:
        return User(entry.pw_name, entry.pw_uid, frozenset(os.getgrouplist(entry.pw_name, entry.pw_gid)))
    return User(_user_name(os.geteuid()), os.geteuid(), frozenset({os.getegid(), *os.getgroups()}))  # not installed yet


def owner(pid: int, proc: Path = PROC) -> User:
    """Return whose a process is; nobody's, with an empty name, where that is not known."""
    return _of_process(pid, proc) or User("", -1, frozenset())


def _of_process(pid: int, proc: Path) -> User | None:
    status = read(proc / str(pid) / "status").decode("ascii", "replace")
    ids = {found[1]: [int(word) for word in found[2].split()] for found in _IDS.finditer(status)}
    if not ids.get("Uid") or not ids.get("Gid"):
        return None
    return User(_user_name(ids["Uid"][1]), ids["Uid"][1], frozenset({ids["Gid"][1], *ids.get("Groups", ())}))


_IDS = re.compile(r"^(Uid|Gid|Groups):([\t 0-9]*)$", re.MULTILINE)


def _user_name(uid: int) -> str:
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return str(uid)


def blocked_paths(path: str, user: User) -> list[Path]:
    """Return the folders that a user may not enter on the way to a socket, and the socket where it may not connect to that.

    Empty where nothing is in the way, or where it cannot be told: only root can ask for others.
    """
    if os.geteuid() not in (0, user.uid):
        return []
    return [place for place in (*reversed(Path(path).parents), Path(path)) if not _may(place, user)]


def _may(place: Path, user: User) -> bool:
    """Return whether a user may enter a folder or connect to a socket, could it but get there."""
    try:
        descriptor = os.open(place, os.O_PATH | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        wanted = os.X_OK if stat.S_ISDIR(os.fstat(descriptor).st_mode) else os.W_OK
        with _acting_as(user):
            return os.access(f"/proc/self/fd/{descriptor}", wanted, effective_ids=True)
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def _acting_as(user: User) -> Iterator[None]:
    """Be somebody else for as long as the block runs."""
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


def describe(place: Path, user: User) -> str:
    """Return what is in a user's way, for people."""
    try:
        info = place.stat()
    except OSError as error:
        return f"{place}: {error.strerror}"
    verb = "enter" if stat.S_ISDIR(info.st_mode) else "connect to"
    group = _group_name(info.st_gid)
    mode = stat.S_IMODE(info.st_mode)
    return f"{user.name} may not {verb} {place} ({_user_name(info.st_uid)}:{group} {mode:04o})"


def fix_commands(place: Path, user: User, *, made_anew: bool = True) -> list[str]:
    """Return the commands that take away what is in a user's way; none where nothing is there.

    Args:
        place: the folder or the socket.
        user: whose way.
        made_anew: whether a socket is one that each VM makes when it starts.
    """
    try:
        info = place.stat()
    except OSError:
        return []
    folder = stat.S_ISDIR(info.st_mode)
    if info.st_gid and info.st_mode & (stat.S_IXGRP if folder else stat.S_IWGRP):
        return [f"usermod -aG {_group_name(info.st_gid)} {user.name}    # and start the agent anew"]
    if folder:
        return [f"setfacl -m u:{user.name}:x {place}"]
    # A default access list of the folder would not do: Linux makes a socket with the umask of whoever makes it (unix_bind).
    return [f"setfacl -m u:{user.name}:rw {place}{'    # and whenever the VM is started anew' if made_anew else ''}"]


def _group_name(gid: int) -> str:
    try:
        return grp.getgrgid(gid).gr_name
    except KeyError:
        return str(gid)
