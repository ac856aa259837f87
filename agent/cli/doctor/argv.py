"""Parses QEMU's command line for its name, its UUID and its monitors. Pure.

It supports the options of QEMU 2.6 to 11.1: `-qmp DEV`, and `-mon` or (11.1) `-object monitor-qmp` with `-chardev`. The options may also
be in a file of `-readconfig` (Incus), and sockets may be inherited descriptors (libvirt). Any user can start a process with any command
line, so a malformed command line must not raise an error.
"""

import contextlib
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import orjson

_OFF = frozenset({"off", "no", "false", "0"})
_FD = re.compile(r"[0-9]{1,9}")
_HEADER = re.compile(r'\[\s*([\w-]+)\s*(?:"([^"]*)")?\s*\]')
_PAIR = re.compile(r'([\w.-]+)\s*=\s*"([^"]*)"')


@dataclass(frozen=True, slots=True)
class Socket:
    """The socket of a QMP monitor.

    Attributes:
        path: the path of a Unix socket; empty for an inherited descriptor and for TCP.
        fd: the inherited descriptor, or None.
        tcp: host:port of a TCP socket, or empty.
        connects: whether QEMU connects to the address instead of listening on it.
    """

    path: str = ""
    fd: int | None = None
    tcp: str = ""
    connects: bool = False


@dataclass(frozen=True, slots=True)
class CommandLine:
    """A parsed command line. `name` and `uuid` are empty if it does not have them."""

    name: str
    uuid: str
    monitors: tuple[Socket, ...]


def config_files(argv: Sequence[str]) -> list[str]:
    """Return the files that `-readconfig` reads."""
    return [value for option, value in _options(argv) if option == "readconfig"]


def parse_argv(argv: Sequence[str], files: Sequence[str] = ()) -> CommandLine:
    """Parse a command line and the text of its `config_files`."""
    name = uuid = ""
    chardevs: dict[str, Socket] = {}
    monitors: list[Socket | str] = []
    for option, value in [*_options(argv), *(pair for text in files for pair in _sections(text))]:
        keys = _keys(value)
        match option:
            case "name":
                name = keys.get("guest") or keys.get("", name)
            case "uuid":
                uuid = value
            case "smbios" if keys.get("type") == "1":
                uuid = uuid or keys.get("uuid", "")
            case "qmp" | "qmp-pretty":
                monitors.append(_qmp_argument(value))
            case "chardev" if "socket" in (keys.get(""), keys.get("backend")):
                chardevs[keys.get("id", "")] = _socket(keys)
            case "mon" if keys.get("mode") == "control":
                monitors.append(keys.get("chardev") or keys.get("", ""))
            case "object" if "monitor-qmp" in (keys.get(""), keys.get("qom-type")):
                monitors.append(keys.get("chardev", ""))
    sockets = (chardevs.get(m) if isinstance(m, str) else m for m in monitors)
    return CommandLine(name, uuid, tuple(s for s in sockets if s is not None))


def _options(argv: Sequence[str]) -> Iterator[tuple[str, str]]:
    for option, value in zip(argv[1:], [*argv[2:], ""], strict=False):
        if option.startswith("-"):
            yield option.lstrip("-"), value


def _keys(value: str) -> dict[str, str]:
    """Parse `word,key=value,...` or a JSON object. The word gets an empty key; `,,` is an escaped comma."""
    if value.startswith("{"):
        with contextlib.suppress(orjson.JSONDecodeError):
            return {key: text for key, text in orjson.loads(value).items() if isinstance(text, str)}
    keys = {}
    for part in re.split(r"(?<!,),(?!,)", value):
        key, equals, text = part.replace(",,", ",").partition("=")
        if equals:
            keys[key] = text
        elif not keys:
            keys[""] = key
        else:
            keys[key] = "on"  # `server`, as before QEMU 6
    return keys


def _socket(keys: dict[str, str]) -> Socket:
    connects = keys.get("server", "off") in _OFF
    if "fd" in keys:
        return Socket(fd=int(keys["fd"]) if _FD.fullmatch(keys["fd"]) else None, connects=connects)
    if "path" in keys:
        return Socket(keys["path"], connects=connects)
    return Socket(tcp=f"{keys.get('host', '')}:{keys.get('port', '')}", connects=connects)


def _qmp_argument(value: str) -> Socket | str:
    """Parse the argument of `-qmp`: `unix:PATH,...`, `tcp:HOST:PORT,...` or the name of a chardev."""
    kind, _, rest = value.partition(":")
    keys = _keys(rest)
    connects = keys.get("server", "off") in _OFF
    match kind:
        case "unix":
            return Socket(keys.get("", ""), connects=connects)
        case "tcp":
            return Socket(tcp=keys.get("", ""), connects=connects)
        case _:
            return rest if kind == "chardev" else ""


def _sections(text: str) -> Iterator[tuple[str, str]]:
    """Yield the options of a `-readconfig` file: [chardev "monitor"], followed by `key = "value"`."""
    option = ""
    keys: list[tuple[str, str]] = []
    for line in [*text.splitlines(), "[end]"]:
        if header := _HEADER.fullmatch(line.strip()):
            if option:
                yield option, ",".join(f"{key}={value.replace(',', ',,')}" for key, value in keys)
            option, keys = header[1], [("id", header[2] or "")]
        elif pair := _PAIR.fullmatch(line.strip()):
            keys.append((pair[1], pair[2]))
