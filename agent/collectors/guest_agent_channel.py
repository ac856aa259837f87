"""State of the guest agent's channel, polled at attach and after the event VSERPORT_CHANGE. Nothing is sent to the guest.

The channel is a virtio serial port with a character device. The port's property `chardev` has the id of the character device. In
query-chardev, the character device's field `frontend-open` shows whether a program in the guest has opened the port.
"""

import re
from collections.abc import Iterable, Sequence
from typing import Any

from agent.collectors.base import Collector, Replies, VmFacts, on_event_else_poll_interval, optional_reply, require_type
from agent.collectors.untrusted_json import list_of_objects_or_empty, text_or_empty
from agent.model.family import Sample
from agent.model.field_reader import FieldReader
from agent.model.metrics.guest import GUEST_AGENT
from agent.qmp.commands import Command

GUEST_AGENT_PORT_NAME = "org.qemu.guest_agent.0"
"""Name of the virtio serial port of the channel. The guest agent opens the port with this name."""

_read = FieldReader(GUEST_AGENT)

_LISTENING_SOCKET = re.compile(r"(disconnected:)?unix:(/.*),server(?:=on)?", re.DOTALL)
"""Matches `filename` of a character device on a Unix socket that QEMU listens on (QEMU 2.6 to 11.1)."""


def _commands(facts: VmFacts) -> Sequence[Command]:
    if facts.guest_agent_port is None:
        return ()
    return (Command("query-chardev"), Command("qom-get", {"path": facts.guest_agent_port, "property": "chardev"}))


def _collect(replies: Replies) -> Iterable[Sample]:
    chardevs, label = require_type(replies[0], list), optional_reply(replies[1], str)
    chardev = next((c for c in list_of_objects_or_empty(chardevs) if label and c.get("label") == label), None)
    if chardev is not None:
        yield Sample(GUEST_AGENT, (), _read(chardev | _parse_socket(text_or_empty(chardev.get("filename")))))


def _parse_socket(filename: str) -> dict[str, Any]:
    """Return the socket's path, and whether a client is connected. Return an empty dict if QEMU does not listen on a Unix socket."""
    match = _LISTENING_SOCKET.fullmatch(filename)
    return {"socket": match[2], "client": match[1] is None} if match is not None else {}


COLLECTOR = Collector("guest_agent", (GUEST_AGENT,), _commands, _collect, on_event_else_poll_interval)
