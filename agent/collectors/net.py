"""Traffic of a VM's tap and macvtap interfaces, counted by the host and reported from the guest's side."""

from collections.abc import Iterable, Sequence
from typing import Any

from agent.collectors.base import Collector, Facts, Replies, at_poll_interval, no_commands
from agent.host.procfs import Numbers, alone, interfaces
from agent.host.types import File, Interface, Text
from agent.model.family import Sample
from agent.model.metrics.host import NET
from agent.model.reader import Reader
from agent.model.record import sanitize

_read = Reader(NET)

_COUNTERS = [f"{direction}_{what}" for direction in ("rx", "tx") for what in ("bytes", "packets", "errors", "dropped")]


def _files(facts: Facts) -> Sequence[File]:
    near = [i for i in facts.interfaces if i.near]
    files = [File(f"/sys/class/net/{i.name}/statistics/{name}", i) for i in near for name in _COUNTERS]
    far = tuple(i for i in facts.interfaces if not i.near)
    return [*files, File("net/dev", far)] if far else files


def _collect(replies: Replies) -> Iterable[Sample]:
    counted: dict[str, tuple[Interface, Numbers]] = {}
    for reply in replies:
        if not isinstance(reply, Text) or reply.text is None:
            continue
        subject: Any = reply.file.of
        if isinstance(subject, Interface):
            counter = reply.file.path.rpartition("/")[2]
            counted.setdefault(subject.name, (subject, {}))[1][counter] = alone(reply.text)
        else:
            by_name = interfaces(reply.text)
            counted |= {far.name: (far, by_name[far.name]) for far in subject if far.name in by_name}
    for interface, counters in counted.values():
        yield Sample(
            NET, (sanitize(interface.name),), _read(_from_guest_side(interface, counters) | {"known": interface.values})
        )


def _from_guest_side(interface: Interface, counters: Numbers) -> Numbers:
    """Return the counters with a tap's directions: the guest receives what the host sends."""
    if interface.swapped:
        return counters
    other = {"rx": "tx", "tx": "rx"}
    return {other[name[:2]] + name[2:]: value for name, value in counters.items()}


COLLECTOR = Collector("net", (NET,), no_commands, _collect, at_poll_interval, files=_files)
