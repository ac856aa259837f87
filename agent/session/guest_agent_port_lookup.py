"""Lookup of the virtio serial port that a VM's guest agent uses."""

from collections.abc import Awaitable, Callable, Sequence
from typing import Any

from agent.collectors.guest_agent_channel import GUEST_AGENT_PORT_NAME
from agent.collectors.untrusted_json import list_of_objects_or_empty, text_or_empty
from agent.qmp.client import CommandResult
from agent.qmp.commands import Command
from agent.session.identity_and_features import DEVICE_CONTAINERS

_PORT_TYPE = "child<virtserialport>"

MAX_PORTS = 32
"""Maximum number of ports to query; a virtio serial device has 31."""

Execute = Callable[[Sequence[Command]], Awaitable[list[CommandResult]]]


class GuestAgentPortLookup:
    """Finds the port of one VM's guest agent. The name of each port is queried once, because the name does not change."""

    def __init__(self) -> None:
        self._names: dict[str, str] = {}

    def has_found_port(self, device: object) -> bool:
        """Return whether the last `find` found a port with this id."""
        return any(path.rpartition("/")[2] == device for path in self._names)

    async def find(self, execute: Execute, listings: Sequence[Any]) -> str | None:
        """Return the QOM path of the port; None if the VM has no such port.

        Args:
            execute: executes commands on QEMU.
            listings: the results of qom-list for DEVICE_CONTAINERS.

        Raises:
            QmpError: the connection ended.
        """
        paths = [
            f"{container}/{name}"
            for container, children in zip(DEVICE_CONTAINERS, listings, strict=True)
            for child in list_of_objects_or_empty(children)
            if child.get("type") == _PORT_TYPE and (name := text_or_empty(child.get("name")))
        ][:MAX_PORTS]
        self._names = {path: name for path, name in self._names.items() if path in paths}
        for path in paths:
            if path not in self._names:
                (answer,) = await execute((Command("qom-get", {"path": path, "property": "name"}),))
                self._names[path] = text_or_empty(answer)
        return next((path for path, name in self._names.items() if name == GUEST_AGENT_PORT_NAME), None)
