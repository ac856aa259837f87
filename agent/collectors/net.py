"""What goes over a VM's tap and macvtap interfaces, counted by the host and told as the guest sees it."""

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

_COUNTERS = [f"{way}_{what}" for way in ("rx", "tx") for what in ("bytes", "packets", "errors", "dropped")]


def _files(facts: Facts) -> Sequence[File]:
    near = [i for i in facts.interfaces if i.near]
    files = [File(f"/sys/class/net/{i.name}/statistics/{name}", i) for i in near for name in _COUNTERS]
    far = tuple(i for i in facts.interfaces if not i.near)
    return [*files, File("net/dev", far)] if far else files


def _collect(replies: Replies) -> Iterable[Sample]:
    found: dict[str, tuple[Interface, Numbers]] = {}
    for answer in replies:
        if not isinstance(answer, Text) or answer.text is None:
            continue
        of: Any = answer.file.of
        if isinstance(of, Interface):
            counter = answer.file.path.rpartition("/")[2]
            found.setdefault(of.name, (of, {}))[1][counter] = alone(answer.text)
        else:
            there = interfaces(answer.text)
            found |= {far.name: (far, there[far.name]) for far in of if far.name in there}
    for interface, counters in found.values():
        yield Sample(NET, (sanitize(interface.name),), _read(_seen(interface, counters) | {"known": interface.values}))


def _seen(interface: Interface, counters: Numbers) -> Numbers:
    """Return the counters as a tap's are: what the guest receives is what the host sends."""
    if interface.swapped:
        return counters
    other = {"rx": "tx", "tx": "rx"}
    return {other[name[:2]] + name[2:]: value for name, value in counters.items()}


COLLECTOR = Collector("net", (NET,), no_commands, _collect, at_poll_interval, files=_files)
