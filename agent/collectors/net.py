"""Traffic of a VM's tap and macvtap interfaces. The host counts it; the samples have the guest's directions."""

from collections.abc import Iterable, Sequence
from typing import Any

from agent.collectors.base import Collector, Replies, VmFacts, at_poll_interval, no_commands
from agent.host.procfs import NumbersByName, parse_net_dev, parse_single_number
from agent.host.types import FileReply, FileRequest, Interface
from agent.model.family import Sample
from agent.model.metrics.host import NET
from agent.model.reader import FieldReader
from agent.model.record import sanitize

_read = FieldReader(NET)

_COUNTERS = [f"{direction}_{what}" for direction in ("rx", "tx") for what in ("bytes", "packets", "errors", "dropped")]


def _files(facts: VmFacts) -> Sequence[FileRequest]:
    same_netns = [i for i in facts.interfaces if i.same_netns]
    files = [FileRequest(f"/sys/class/net/{i.name}/statistics/{name}", i) for i in same_netns for name in _COUNTERS]
    other_netns = tuple(i for i in facts.interfaces if not i.same_netns)
    return [*files, FileRequest("net/dev", other_netns)] if other_netns else files


def _collect(replies: Replies) -> Iterable[Sample]:
    counters_by_name: dict[str, tuple[Interface, NumbersByName]] = {}
    for reply in replies:
        if not isinstance(reply, FileReply) or reply.text is None:
            continue
        subject: Any = reply.request.subject
        if isinstance(subject, Interface):
            counter = reply.request.path.rpartition("/")[2]
            counters_by_name.setdefault(subject.name, (subject, {}))[1][counter] = parse_single_number(reply.text)
        else:
            parsed = parse_net_dev(reply.text)
            counters_by_name |= {other.name: (other, parsed[other.name]) for other in subject if other.name in parsed}
    for interface, counters in counters_by_name.values():
        values = _read(_in_guest_directions(interface, counters) | {"known": interface.values})
        yield Sample(NET, (sanitize(interface.name),), values)


def _in_guest_directions(interface: Interface, counters: NumbersByName) -> NumbersByName:
    """Return the counters with the guest's directions. On a tap, the host sends what the guest receives."""
    if interface.directions_swapped:
        return counters
    other = {"rx": "tx", "tx": "rx"}
    return {other[name[:2]] + name[2:]: value for name, value in counters.items()}


COLLECTOR = Collector("net", (NET,), no_commands, _collect, at_poll_interval, files=_files)
