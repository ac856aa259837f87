"""Parses QEMU's command line into the VM's name, UUID, QMP monitors and network backends. Pure.

In QEMU 2.6 to 11.1, these options define a monitor: `-qmp DEV`, or `-chardev` with `-mon`, or `-chardev` with `-object monitor-qmp` (11.1).
The options may also be in a file that `-readconfig` names (Incus). A socket may be an inherited file descriptor (libvirt).
A malformed command line raises no error, because any user can start a process with any command line.
"""

import contextlib
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import orjson

_OFF_VALUES = frozenset({"off", "no", "false", "0"})
_DESCRIPTOR = re.compile(r"[0-9]{1,9}")
_SECTION_HEADER = re.compile(r'\[\s*([\w-]+)\s*(?:"([^"]*)")?\s*\]')
_KEY_VALUE_LINE = re.compile(r'([\w.-]+)\s*=\s*"([^"]*)"')


@dataclass(frozen=True, slots=True)
class MonitorSocket:
    """The socket of a QMP monitor.

    Attributes:
        path: the path of a Unix socket; empty for an inherited descriptor and for TCP.
        fd: the inherited file descriptor, or None.
        tcp: host:port of a TCP socket, or empty.
        connects: whether QEMU connects to the address instead of listening on it.
    """

    path: str = ""
    fd: int | None = None
    tcp: str = ""
    connects: bool = False


@dataclass(frozen=True, slots=True)
class CommandLine:
    """A parsed command line of QEMU.

    Attributes:
        name, uuid: name and UUID of the VM; empty if the command line does not contain them.
        monitors: the sockets of the QMP monitors.
        incoming: whether QEMU was started with `-incoming`, to wait for a migration or a restored state.
        netdevs: id and type of each network backend.
    """

    name: str
    uuid: str
    monitors: tuple[MonitorSocket, ...]
    incoming: bool = False
    netdevs: tuple[tuple[str, str], ...] = ()


def readconfig_paths(argv: Sequence[str]) -> list[str]:
    """Return the paths of the files that `-readconfig` names."""
    return [value for option, value in _split_options(argv) if option == "readconfig"]


def parse_argv(argv: Sequence[str], files: Sequence[str] = ()) -> CommandLine:
    """Parse a command line of QEMU.

    Args:
        argv: the command line with the program's name.
        files: the texts of the files that `readconfig_paths` returns.
    """
    name = uuid = ""
    incoming = False
    chardevs: dict[str, MonitorSocket] = {}
    monitors: list[MonitorSocket | str] = []
    options = [*_split_options(argv), *(pair for text in files for pair in _parse_config_file(text))]
    for option, value in options:
        properties = _parse_properties(value)
        match option:
            case "name":
                name = properties.get("guest") or properties.get("", name)
            case "uuid":
                uuid = value
            case "incoming":
                incoming = True
            case "smbios" if properties.get("type") == "1":
                uuid = uuid or properties.get("uuid", "")
            case "qmp" | "qmp-pretty":
                monitors.append(_parse_qmp_argument(value))
            case "chardev" if "socket" in (properties.get(""), properties.get("backend")):
                chardevs[properties.get("id", "")] = _parse_chardev(properties)
            case "mon" if properties.get("mode") == "control":
                monitors.append(properties.get("chardev") or properties.get("", ""))
            case "object" if "monitor-qmp" in (properties.get(""), properties.get("qom-type")):
                monitors.append(properties.get("chardev", ""))
    sockets = (chardevs.get(m) if isinstance(m, str) else m for m in monitors)
    return CommandLine(name, uuid, tuple(s for s in sockets if s is not None), incoming, _parse_netdevs(options))


def _parse_netdevs(options: Sequence[tuple[str, str]]) -> tuple[tuple[str, str], ...]:
    """Return the id and the type of each network backend."""
    backends = (_parse_properties(value) for option, value in options if option == "netdev")
    return tuple((each.get("id", ""), each.get("") or each.get("type", "")) for each in backends)


def _split_options(argv: Sequence[str]) -> Iterator[tuple[str, str]]:
    for option, value in zip(argv[1:], [*argv[2:], ""], strict=False):
        if option.startswith("-"):
            yield option.lstrip("-"), value


def _parse_properties(value: str) -> dict[str, str]:
    """Parse an option's argument: `WORD,KEY=VALUE,...` or a JSON object. The word gets an empty key. `,,` is an escaped comma."""
    if value.startswith("{"):
        with contextlib.suppress(orjson.JSONDecodeError):
            return {key: text for key, text in orjson.loads(value).items() if isinstance(text, str)}
    properties = {}
    for part in re.split(r"(?<!,),(?!,)", value):
        key, equals, text = part.replace(",,", ",").partition("=")
        if equals:
            properties[key] = text
        elif not properties:
            properties[""] = key
        else:
            properties[key] = "on"  # a key without a value, such as `server` before QEMU 6
    return properties


def _parse_chardev(properties: dict[str, str]) -> MonitorSocket:
    connects = properties.get("server", "off") in _OFF_VALUES
    if "fd" in properties:
        return MonitorSocket(
            fd=int(properties["fd"]) if _DESCRIPTOR.fullmatch(properties["fd"]) else None, connects=connects
        )
    if "path" in properties:
        return MonitorSocket(properties["path"], connects=connects)
    return MonitorSocket(tcp=f"{properties.get('host', '')}:{properties.get('port', '')}", connects=connects)


def _parse_qmp_argument(value: str) -> MonitorSocket | str:
    """Parse the argument of `-qmp`. Return the socket of `unix:PATH,...` or `tcp:HOST:PORT,...`, or the id in `chardev:ID`."""
    kind, _, argument = value.partition(":")
    properties = _parse_properties(argument)
    connects = properties.get("server", "off") in _OFF_VALUES
    match kind:
        case "unix":
            return MonitorSocket(properties.get("", ""), connects=connects)
        case "tcp":
            return MonitorSocket(tcp=properties.get("", ""), connects=connects)
        case _:
            return argument if kind == "chardev" else ""


def _parse_config_file(text: str) -> Iterator[tuple[str, str]]:
    """Yield the options in a `-readconfig` file. A section `[chardev "ID"]` with lines `key = "value"` is one option."""
    option = ""
    properties: list[tuple[str, str]] = []
    for line in [*text.splitlines(), "[end]"]:
        if header := _SECTION_HEADER.fullmatch(line.strip()):
            if option:
                yield option, ",".join(f"{key}={value.replace(',', ',,')}" for key, value in properties)
            option, properties = header[1], [("id", header[2] or "")]
        elif pair := _KEY_VALUE_LINE.fullmatch(line.strip()):
            properties.append((pair[1], pair[2]))
