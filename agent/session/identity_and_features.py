"""Identity and features of a VM: the QMP commands that query both, and parsers of the replies. Pure."""

import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from agent.collectors.base import VmFacts
from agent.collectors.untrusted_json import list_of_objects_or_empty, object_or_empty, text_or_empty
from agent.model.record import Vm, sanitize
from agent.qmp.commands import Command
from agent.qmp.errors import UnreadableReplyError
from agent.qmp.protocol import UNKNOWN_VERSION, Greeting

_UUID5_NAMESPACE = uuid.UUID("5f0b6f6e-8c3e-5d0a-9a39-6e1f1f2d7a10")
"""Namespace of the UUIDs that the agent derives for VMs without a UUID."""
_NIL_UUID = str(uuid.UUID(int=0))

IDENTITY_COMMANDS = (Command("query-uuid"), Command("query-name"))
"""Commands that identify a VM. QEMU's version is in the greeting."""

QUERY_RUN_STATE = Command("query-status")
"""Queries whether the guest runs or waits for a migration."""

DEVICE_CONTAINERS = ("/machine/peripheral", "/machine/peripheral-anon")
"""QOM paths that contain the devices: one for devices with an id, one for devices without."""

FEATURE_COMMANDS = (
    Command("query-migrate-capabilities"),
    *(Command("qom-list", {"path": container}) for container in DEVICE_CONTAINERS),
)
"""Commands that query the features of a VM."""

QUERY_COMMANDS = Command("query-commands")
"""Lists the commands of a QEMU. All VMs of one build have the same commands, so the agent queries one VM of each build."""

ENABLE_MIGRATION_EVENTS = Command(
    "migrate-set-capabilities", {"capabilities": [{"capability": "events", "state": True}]}
)
"""Makes QEMU emit MIGRATION events."""

_STATS_INTERVAL_PROPERTY = "guest-stats-polling-interval"

_BALLOON_TYPES = tuple(f"child<virtio-balloon-{bus}" for bus in ("pci", "ccw", "device"))
"""Prefixes of the QOM types of virtio balloons; the suffix -transitional> or -non-transitional> may follow.

The list is fixed, because QEMU would load modules to list the types.
"""

_HV_BALLOON_TYPES = ("child<hv-balloon",)


@dataclass(frozen=True, slots=True)
class QemuBuild:
    """The version of a QEMU.

    Attributes:
        version: the version number, such as 7.2.22; empty if unknown.
        package: the distribution's version text, such as `Debian 1:7.2+dfsg-7`; may be empty.
    """

    version: str
    package: str


def qemu_build_of(greeting: Greeting) -> QemuBuild:
    """Return the version in a QMP greeting."""
    version = ".".join(map(str, greeting.version)) if greeting.version != UNKNOWN_VERSION else ""
    return QemuBuild(version, sanitize(greeting.package, 128))


def identify(
    host: str,
    monitor: str,
    replies: Sequence[Any],
    *,
    shared_address: str = "",
    container: str = "",
    arguments: Callable[[], Sequence[str]] = tuple,
) -> Vm:
    """Return the VM that the replies to IDENTITY_COMMANDS describe.

    A VM that was started without a UUID reports only zeros. The agent then derives a UUID from the host's name and the monitor's name. The
    derived UUID stays the same when the VM or the agent restarts.

    A VM can also connect to an address of the agent. Then the monitor's name changes with each connection or process. So the agent derives
    the UUID from the host's name, the agent's address and the VM's name. For a VM without a name, QEMU's command line replaces the name.

    Args:
        host: the host's name.
        monitor: the monitor's name.
        replies: the replies to IDENTITY_COMMANDS.
        shared_address: the agent's address that the VM connected to; empty if the agent connected to the monitor.
        container: name of the container that the VM's manager runs in; empty if the manager runs on the host itself.
        arguments: returns QEMU's command line, or an empty sequence if the command line is unknown.

    Raises:
        UnreadableReplyError: the UUID cannot be read, or the VM has no UUID and the VM's name cannot be read.
    """
    if isinstance(replies[0], UnreadableReplyError):
        raise replies[0]
    uuid_reply, name_reply = map(object_or_empty, replies)
    try:
        vm_uuid = str(uuid.UUID(uuid_reply.get("UUID")))
    except (ValueError, TypeError, AttributeError):
        vm_uuid = _NIL_UUID
    if vm_uuid == _NIL_UUID and isinstance(replies[1], UnreadableReplyError):
        raise replies[1]
    name = sanitize(text_or_empty(name_reply.get("name")))
    if vm_uuid == _NIL_UUID:
        key = _key_at_shared_address(shared_address, name, arguments) if shared_address else ""
        vm_uuid = str(uuid.uuid5(_UUID5_NAMESPACE, f"{host}\n{key or monitor}"))
    return Vm(host, vm_uuid, name or vm_uuid, monitor, _kubernetes_namespace(container, name))


def _kubernetes_namespace(container: str, name: str) -> str:
    """Return the namespace of a VM of KubeVirt; empty for other VMs.

    KubeVirt runs a VM in a pod `virt-launcher-...` and names its domain NAMESPACE_NAME. Neither part contains an underscore.
    """
    namespace, separator, _ = name.partition("_")
    return namespace if separator and container.startswith("virt-launcher-") else ""


def _key_at_shared_address(address: str, name: str, arguments: Callable[[], Sequence[str]]) -> str:
    """Return a key that identifies a VM across restarts of the VM; empty if both the name and the command line are unknown."""
    if name:
        return f"{address}\nname\n{name}"
    return "\0".join((address, *command_line)) if (command_line := arguments()) else ""


def balloon_path(replies: Sequence[Any], types: tuple[str, ...] = _BALLOON_TYPES) -> str | None:
    """Return the QOM path of the VM's balloon device; None if the VM has no balloon. QEMU allows one balloon.

    Args:
        replies: the replies to FEATURE_COMMANDS.
        types: prefixes of the QOM types of the balloon.
    """
    for container, children in zip(DEVICE_CONTAINERS, replies[1:], strict=True):
        for child in list_of_objects_or_empty(children):
            if text_or_empty(child.get("type")).startswith(types) and (name := text_or_empty(child.get("name"))):
                return f"{container}/{name}"
    return None


def migration_events_enabled(replies: Sequence[Any]) -> bool:
    """Return whether the replies to FEATURE_COMMANDS show that QEMU emits MIGRATION events."""
    capabilities = list_of_objects_or_empty(replies[0])
    return any(c.get("capability") == "events" and c.get("state") is True for c in capabilities)


def get_stats_interval_command(balloon: str) -> Command:
    """Return the command that reads the interval at which QEMU polls a balloon's guest statistics.

    Args:
        balloon: the balloon's QOM path.
    """
    return Command("qom-get", {"path": balloon, "property": _STATS_INTERVAL_PROPERTY})


def set_stats_interval_command(balloon: str, seconds: int) -> Command:
    """Return the command that sets the interval at which QEMU polls a balloon's guest statistics.

    Args:
        balloon: the balloon's QOM path.
        seconds: the interval.
    """
    return Command("qom-set", {"path": balloon, "property": _STATS_INTERVAL_PROPERTY, "value": seconds})


def parse_stats_interval(reply: Any) -> int:
    """Return the interval in seconds in the reply to `get_stats_interval_command`; 0 if QEMU does not poll or the reply is invalid."""
    return reply if type(reply) is int and 0 < reply < 1 << 31 else 0


def parse_command_names(reply: Any) -> frozenset[str]:
    """Return the names in the reply to QUERY_COMMANDS; an empty set if the reply is an error or lists something else."""
    names = frozenset(text_or_empty(command.get("name")) for command in list_of_objects_or_empty(reply)) - {""}
    return names if QUERY_COMMANDS.name in names else frozenset()


def are_replies_shifted(replies: Sequence[Any]) -> bool:
    """Return whether the replies to IDENTITY_COMMANDS and QUERY_RUN_STATE are late by one command.

    A slow QEMU sends the reply to an earlier connection's last command over the present connection. The client takes this reply for the
    reply to the negotiation. So each later reply seems to belong to the next command.
    """
    return any("UUID" in object_or_empty(reply) for reply in replies[1:])


def parse_feature_replies(
    replies: Sequence[Any], greeting: Greeting, commands: frozenset[str] = frozenset()
) -> VmFacts:
    """Return the facts about a VM.

    Args:
        replies: the replies to FEATURE_COMMANDS.
        greeting: QEMU's greeting.
        commands: the names of QEMU's commands; empty if the names are unknown.
    """
    return VmFacts(
        balloon=balloon_path(replies),
        hv_balloon=balloon_path(replies, _HV_BALLOON_TYPES) is not None,
        migration_events=migration_events_enabled(replies),
        version=greeting.version[:2],
        commands=commands,
    )
