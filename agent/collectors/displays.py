"""VNC and SPICE displays and their clients: polled at attach and when a client connects or disconnects.

A QEMU may be built without VNC or without SPICE.
"""

from collections.abc import Iterable
from typing import Any

from agent.collectors.base import Collector, Replies, require_type
from agent.collectors.untrusted_json import list_of_objects_or_empty, text_or_empty
from agent.model.family import FieldValues, Sample
from agent.model.field_reader import FieldReader
from agent.model.metrics.devices_and_displays import SPICE, VNC
from agent.model.record import sanitize
from agent.qmp.commands import Command

_read_vnc = FieldReader(VNC)
_read_spice = FieldReader(SPICE)

_MAX_DISPLAYS = 16
_MAX_CLIENTS = 48

_CHANNELS = {
    1: "main",
    2: "display",
    3: "inputs",
    4: "cursor",
    5: "playback",
    6: "record",
    7: "tunnel",
    8: "smartcard",
    9: "usbredir",
    10: "port",
    11: "webdav",
}
"""Names of the channel types in the SPICE protocol."""


def _collect_vnc(replies: Replies) -> Iterable[Sample]:
    for display in list_of_objects_or_empty(require_type(replies[0], list), _MAX_DISPLAYS):
        if name := text_or_empty(display.get("id")):
            addresses, clients = (
                list_of_objects_or_empty(display.get("server")),
                list_of_objects_or_empty(display.get("clients")),
            )
            fields = {
                "addresses": [
                    _host_and_port(address) | _display_authentication(address) for address in addresses[:_MAX_CLIENTS]
                ],
                "clients": len(clients),
                "who": [_host_and_port(client) | _client_credentials(client) for client in clients[:_MAX_CLIENTS]],
            }
            yield Sample(VNC, (sanitize(name),), _read_vnc(display | fields))


def _collect_spice(replies: Replies) -> Iterable[Sample]:
    display = require_type(replies[0], dict)
    if display.get("enabled") is not True:
        return ()
    clients: dict[str, list[dict[str, Any]]] = {}
    for channel in list_of_objects_or_empty(display.get("channels")):  # a client has several channels
        clients.setdefault(str(channel.get("connection-id")), []).append(channel)
    connected = [_host_and_port(channels[0]) | _channel_types(channels) for channels in clients.values()]
    fields = {"clients": len(clients), "who": connected[:_MAX_CLIENTS]}
    return (Sample(SPICE, (), _read_spice(display | fields)),)


def _host_and_port(endpoint: dict[str, Any]) -> FieldValues:
    """Return the host and the port of a VNC or SPICE client, or of a VNC server. QEMU calls the port of VNC `service`."""
    raw = {"host": endpoint.get("host"), "port": endpoint.get("service", endpoint.get("port"))}
    return {key: sanitize(value, 128) for key, value in raw.items() if isinstance(value, str)}


def _display_authentication(address: dict[str, Any]) -> FieldValues:
    """Return the authentication of an address of a VNC display, and whether the address is a websocket."""
    raw = {key: address.get(key) for key in ("auth", "vencrypt")}
    texts = {key: sanitize(value, 128) for key, value in raw.items() if isinstance(value, str)}
    return texts | ({"websocket": True} if address.get("websocket") is True else {})


def _client_credentials(client: dict[str, Any]) -> FieldValues:
    raw = {key: client.get(key) for key in ("sasl_username", "x509_dname")}
    texts = {key: sanitize(value, 128) for key, value in raw.items() if isinstance(value, str)}
    return texts | ({"websocket": True} if client.get("websocket") is True else {})


def _channel_types(channels: list[dict[str, Any]]) -> FieldValues:
    """Return the types of a SPICE client's channels, and whether all of them use TLS."""
    types = (channel.get("channel-type") for channel in channels)
    names = {_CHANNELS.get(number, str(number)) for number in types if type(number) is int}
    return {"channels": sorted(names), "tls": all(channel.get("tls") is True for channel in channels)}


VNC_DISPLAYS = Collector(
    "vnc",
    (VNC,),
    lambda facts: (Command("query-vnc-servers"),) if facts.has_command("query-vnc-servers") else (),
    _collect_vnc,
)
SPICE_DISPLAY = Collector(
    "spice",
    (SPICE,),
    lambda facts: (Command("query-spice"),) if facts.has_command("query-spice") else (),
    _collect_spice,
)
