"""Identity and features of a VM: commands sent once at each attach, and parsers of their answers. Pure."""

import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from agent.collectors.base import Facts
from agent.collectors.untrusted import as_list_of_objects, as_object, as_text
from agent.model.record import Vm, sanitize
from agent.qmp.commands import Command
from agent.qmp.errors import UnreadableReplyError
from agent.qmp.protocol import Greeting

_NAMESPACE = uuid.UUID("5f0b6f6e-8c3e-5d0a-9a39-6e1f1f2d7a10")
_NIL = str(uuid.UUID(int=0))

IDENTITY = (Command("query-uuid"), Command("query-name"))
"""Commands that identify a VM. The version of its QEMU is in the greeting."""

RUN_STATE = Command("query-status")

DEVICE_CONTAINERS = ("/machine/peripheral", "/machine/peripheral-anon")
"""QOM paths of the devices: those with an id, and those without."""

FEATURES = (
    Command("query-migrate-capabilities"),
    *(Command("qom-list", {"path": container}) for container in DEVICE_CONTAINERS),
)
"""Commands that discover the features of a VM."""

LIST_COMMANDS = Command("query-commands")
"""Lists the commands of a QEMU. They are the same for all VMs of one build, so one VM of each build is queried."""

ENABLE_MIGRATION_EVENTS = Command(
    "migrate-set-capabilities", {"capabilities": [{"capability": "events", "state": True}]}
)

_INTERVAL = "guest-stats-polling-interval"

_BALLOONS = tuple(f"child<virtio-balloon-{bus}" for bus in ("pci", "ccw", "device"))
"""Prefixes of the types of balloon devices; the suffix -transitional> or -non-transitional> may follow.

The agent does not ask QEMU for its types, because QEMU would load modules to list them.
"""

_HV_BALLOONS = ("child<hv-balloon",)


@dataclass(frozen=True, slots=True)
class Build:
    """A QEMU's version.

    Attributes:
        version: such as 7.2.22.
        package: the distribution's own version text, or empty.
    """

    version: str
    package: str


def build_of(greeting: Greeting) -> Build:
    """Return the build that a greeting names."""
    return Build(".".join(map(str, greeting.version)), sanitize(greeting.package, 128))


def identify(
    host: str,
    monitor: str,
    answers: Sequence[Any],
    *,
    shared_address: str = "",
    arguments: Callable[[], Sequence[str]] = tuple,
) -> Vm:
    """Return the VM that the answers to IDENTITY describe.

    Every VM that was started without a UUID reports zeros. The agent derives a UUID for it from the host's name and the monitor's
    address, so that the UUID stays the same when the VM or the agent restarts. If several VMs share the address, the VM's name or, if
    it has none, its command line is added.

    Args:
        host: the host's name.
        monitor: the monitor's name.
        answers: the answers to IDENTITY.
        shared_address: the address that VMs connect to; empty if the monitor's name is an address of this VM alone.
        arguments: returns QEMU's command line; empty if it is unknown.

    Raises:
        UnreadableReplyError: an answer cannot be read, so the identity is unknown.
    """
    for answer in answers:
        if isinstance(answer, UnreadableReplyError):
            raise answer
    uuid_answer, name_answer = map(as_object, answers)
    try:
        vm_uuid = str(uuid.UUID(uuid_answer.get("UUID")))
    except (ValueError, TypeError, AttributeError):
        vm_uuid = _NIL
    name = sanitize(as_text(name_answer.get("name")))
    if vm_uuid == _NIL:
        key = _key_at(shared_address, name, arguments) if shared_address else ""
        vm_uuid = str(uuid.uuid5(_NAMESPACE, f"{host}\n{key or monitor}"))
    return Vm(host, vm_uuid, name or vm_uuid, monitor)


def _key_at(address: str, name: str, arguments: Callable[[], Sequence[str]]) -> str:
    """Return a key that identifies a VM at a shared address and stays the same when the VM restarts; empty if there is none."""
    if name:
        return f"{address}\nname\n{name}"
    return "\0".join((address, *command_line)) if (command_line := arguments()) else ""


def balloon_path(answers: Sequence[Any], types: tuple[str, ...] = _BALLOONS) -> str | None:
    """Return the QOM path of the VM's balloon device from the answers to FEATURES, or None. QEMU allows one balloon.

    Args:
        answers: the answers to FEATURES.
        types: prefixes of the QOM types to look for.
    """
    for container, children in zip(DEVICE_CONTAINERS, answers[1:], strict=True):
        for child in as_list_of_objects(children):
            if as_text(child.get("type")).startswith(types) and (name := as_text(child.get("name"))):
                return f"{container}/{name}"
    return None


def migration_events_enabled(answers: Sequence[Any]) -> bool:
    """Return whether MIGRATION events are enabled, from the answers to FEATURES."""
    return any(c.get("capability") == "events" and c.get("state") is True for c in as_list_of_objects(answers[0]))


def get_stats_interval(balloon: str) -> Command:
    """Return the command that reads a balloon's polling interval for guest statistics."""
    return Command("qom-get", {"path": balloon, "property": _INTERVAL})


def set_stats_interval(balloon: str, seconds: int) -> Command:
    """Return the command that sets a balloon's polling interval for guest statistics, in seconds."""
    return Command("qom-set", {"path": balloon, "property": _INTERVAL, "value": seconds})


def stats_interval(answer: Any) -> int:
    """Return the interval in seconds from the answer to `get_stats_interval`; 0 if polling is off or unknown."""
    return answer if type(answer) is int and 0 < answer < 1 << 31 else 0


def command_names(answer: Any) -> frozenset[str]:
    """Return the names in the answer to LIST_COMMANDS; an empty set if QEMU refused."""
    return frozenset(as_text(command.get("name")) for command in as_list_of_objects(answer)) - {""}


def facts_of(answers: Sequence[Any], greeting: Greeting, commands: frozenset[str] = frozenset()) -> Facts:
    """Return the facts in the answers to FEATURES, the greeting and the build's command names."""
    return Facts(
        balloon=balloon_path(answers),
        hv_balloon=balloon_path(answers, _HV_BALLOONS) is not None,
        migration_events=migration_events_enabled(answers),
        version=greeting.version[:2],
        commands=commands,
    )
