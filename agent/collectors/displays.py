"""Displays and who looks at them. Asked at attach and when somebody connects or leaves; a QEMU may be built without either kind."""

from collections.abc import Iterable
from typing import Any

from agent.collectors.base import Collector, Replies, require_type
from agent.collectors.untrusted import as_list_of_objects, as_text
from agent.model.family import Sample, Values
from agent.model.metrics.inventory import SPICE, VNC
from agent.model.reader import Reader
from agent.model.record import sanitize
from agent.qmp.commands import Command

_read_vnc = Reader(VNC)
_read_spice = Reader(SPICE)

_MAX_DISPLAYS = 16
_MAX_CLIENTS = 48


def _vnc(replies: Replies) -> Iterable[Sample]:
    for display in as_list_of_objects(require_type(replies[0], list), _MAX_DISPLAYS):
        if name := as_text(display.get("id")):
            addresses, clients = as_list_of_objects(display.get("server")), as_list_of_objects(display.get("clients"))
            told = {
                "addresses": [_address(one) for one in addresses[:_MAX_CLIENTS]],
                "clients": len(clients),
                "who": [_address(one) | _shown(one) for one in clients[:_MAX_CLIENTS]],
            }
            yield Sample(VNC, (sanitize(name),), _read_vnc(display | told))


def _spice(replies: Replies) -> Iterable[Sample]:
    display = require_type(replies[0], dict)
    if display.get("enabled") is not True:
        return ()
    clients: dict[Any, dict[str, Any]] = {}
    for channel in as_list_of_objects(display.get("channels")):  # a client has several
        clients.setdefault(str(channel.get("connection-id")), channel)
    who = [_address(one) for one in list(clients.values())[:_MAX_CLIENTS]]
    return (Sample(SPICE, (), _read_spice(display | {"clients": len(clients), "who": who})),)


def _address(one: dict[str, Any]) -> Values:
    """Return an address; VNC calls its port `service`."""
    named = {"host": one.get("host"), "port": one.get("service", one.get("port"))}
    return {key: sanitize(value, 128) for key, value in named.items() if isinstance(value, str)}


def _shown(one: dict[str, Any]) -> Values:
    named = {key: one.get(key) for key in ("sasl_username", "x509_dname")}
    return {key: sanitize(value, 128) for key, value in named.items() if isinstance(value, str)}


VNC_DISPLAYS = Collector(
    "vnc", (VNC,), lambda facts: (Command("query-vnc-servers"),) if facts.has_command("query-vnc-servers") else (), _vnc
)
SPICE_DISPLAY = Collector(
    "spice", (SPICE,), lambda facts: (Command("query-spice"),) if facts.has_command("query-spice") else (), _spice
)
