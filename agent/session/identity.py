"""Who a VM is and what it has: the questions asked once at each attach, and what their answers mean. Pure."""

import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from agent.collectors.base import Facts
from agent.collectors.untrusted import as_list_of_objects, as_object, as_text
from agent.model.record import Vm, sanitize
from agent.qmp.commands import Command
from agent.qmp.protocol import Greeting

_NAMESPACE = uuid.UUID("5f0b6f6e-8c3e-5d0a-9a39-6e1f1f2d7a10")
_NIL = str(uuid.UUID(int=0))

WHO = (Command("query-uuid"), Command("query-name"))
"""Its version is in the greeting and need not be asked."""

STATUS = Command("query-status")

ROOMS = ("/machine/peripheral", "/machine/peripheral-anon")
"""Where QEMU keeps devices: those with an id, and those without."""

WHAT = (Command("query-migrate-capabilities"), *(Command("qom-list", {"path": room}) for room in ROOMS))

COMMANDS = Command("query-commands")
"""What a QEMU understands; the same for all VMs of one build, so asked of one of them."""

TURN_ON_MIGRATION_EVENTS = Command(
    "migrate-set-capabilities", {"capabilities": [{"capability": "events", "state": True}]}
)

_INTERVAL = "guest-stats-polling-interval"

_BALLOONS = tuple(f"child<virtio-balloon-{bus}" for bus in ("pci", "ccw", "device"))
"""Types of balloon devices, with the ends -transitional> and -non-transitional> too. Enumerating types instead would load modules."""

_HV_BALLOONS = ("child<hv-balloon",)


@dataclass(frozen=True, slots=True)
class Build:
    """A QEMU's version.

    Attributes:
        version: such as 7.2.22.
        package: the distribution's own text, or empty.
    """

    version: str
    package: str


def build(greeting: Greeting) -> Build:
    """Return the version that a greeting tells."""
    return Build(".".join(map(str, greeting.version)), sanitize(greeting.package, 128))


def who(host: str, monitor: str, answers: Sequence[Any]) -> Vm:
    """Return whom the answers to WHO name.

    A VM that was started without a UUID answers with zeros, as all such do; it gets one made of the host's name and its monitor's
    address, so that it stays the same over restarts of itself and of the agent.
    """
    said, named = map(as_object, answers)
    try:
        told = str(uuid.UUID(said.get("UUID")))
    except (ValueError, TypeError, AttributeError):
        told = _NIL
    if told == _NIL:
        told = str(uuid.uuid5(_NAMESPACE, f"{host}\n{monitor}"))
    return Vm(host, told, sanitize(as_text(named.get("name"))) or told, monitor)


def balloon_path(answers: Sequence[Any], kinds: tuple[str, ...] = _BALLOONS) -> str | None:
    """Return the QOM path of the VM's balloon device, out of the answers to WHAT, or None; QEMU allows one."""
    for room, children in zip(ROOMS, answers[1:], strict=True):
        for child in as_list_of_objects(children):
            if as_text(child.get("type")).startswith(kinds) and (name := as_text(child.get("name"))):
                return f"{room}/{name}"
    return None


def migration_events(answers: Sequence[Any]) -> bool:
    """Return whether MIGRATION events are switched on, out of the answers to WHAT."""
    return any(c.get("capability") == "events" and c.get("state") is True for c in as_list_of_objects(answers[0]))


def interval_ask(balloon: str) -> Command:
    """Return the question how often a balloon's guest is asked for its statistics."""
    return Command("qom-get", {"path": balloon, "property": _INTERVAL})


def set_interval_ask(balloon: str, seconds: int) -> Command:
    """Return the change that has a balloon's guest asked for its statistics every so many seconds."""
    return Command("qom-set", {"path": balloon, "property": _INTERVAL, "value": seconds})


def interval(answer: Any) -> int:
    """Return the seconds that `interval_ask` was answered with; 0 is never."""
    return answer if type(answer) is int and 0 < answer < 1 << 31 else 0


def commands(answer: Any) -> frozenset[str]:
    """Return the names that `COMMANDS` was answered with; none where QEMU would not say."""
    return frozenset(as_text(command.get("name")) for command in as_list_of_objects(answer)) - {""}


def facts(answers: Sequence[Any], greeting: Greeting, commands: frozenset[str] = frozenset()) -> Facts:
    """Return what the answers to WHAT, the greeting and the build's commands tell of the VM."""
    return Facts(
        balloon=balloon_path(answers),
        hv_balloon=balloon_path(answers, _HV_BALLOONS) is not None,
        migration_events=migration_events(answers),
        version=greeting.version[:2],
        commands=commands,
    )
