"""Traffic of a VM's taps, macvtaps and virtual functions, as the host counts the packets and bytes.

In the samples, `receive` and `transmit` are from the guest's side.
"""

from collections.abc import Iterable, Sequence

from agent.collectors.base import Collector, Replies, VmFacts, at_poll_interval, no_commands_to_send
from agent.host.procfs import parse_net_dev, parse_unsigned_int, parse_unsigned_ints
from agent.host.types import KernelFilesToRead, VirtualFunctionCountersToRead, VmHostInterface
from agent.model.family import FieldValues, Sample
from agent.model.field_reader import FieldReader
from agent.model.metrics.vm_process_and_interfaces import NET
from agent.model.record import sanitize

_read_constants = FieldReader(NET)

_FIELD_NAMES = tuple(field.name for field in NET.fields if not field.path.startswith("known."))

_TAP_COUNTERS = tuple(field.path for field in NET.fields if not field.path.startswith("known."))
"""The name of the kernel's counter for each field. On a tap, the host transmits the packets that the guest receives."""

_OTHER_DIRECTION = {"rx": "tx", "tx": "rx"}
_MACVTAP_COUNTERS = tuple(_OTHER_DIRECTION[counter[:2]] + counter[2:] for counter in _TAP_COUNTERS)


class _DescribedInterface:
    """A network interface, and what does not change between two polls: the labels and the constant values of its samples.

    Attributes:
        name: the interface's name on the host.
        labels: the labels of its samples.
        constants: the values that do not come from the kernel's counters.
        counters: the kernel's names of the counters, in the order of `_FIELD_NAMES`.
    """

    __slots__ = ("constants", "counters", "labels", "name")

    def __init__(self, interface: VmHostInterface) -> None:
        self.name = interface.name
        self.labels = (sanitize(interface.name),)
        self.constants = _read_constants({"known": interface.extra_values})
        self.counters = _TAP_COUNTERS if interface.directions_swapped else _MACVTAP_COUNTERS


def _files(facts: VmFacts) -> Sequence[KernelFilesToRead]:
    files = [_to_file_request(interface) for interface in facts.interfaces if interface.same_netns]
    other_netns = tuple(_DescribedInterface(interface) for interface in facts.interfaces if not interface.same_netns)
    return [*files, KernelFilesToRead("net", ("dev",), other_netns)] if other_netns else files


def _to_file_request(interface: VmHostInterface) -> KernelFilesToRead:
    described = _DescribedInterface(interface)
    if interface.vf is not None:
        return VirtualFunctionCountersToRead("", (*described.counters, "mac"), described, vf=interface.vf)
    return KernelFilesToRead(f"/sys/class/net/{interface.name}/statistics", described.counters, described)


def _collect(replies: Replies) -> Iterable[Sample]:
    for request, contents in replies:
        if isinstance(request, VirtualFunctionCountersToRead):
            *counters, mac = contents
            if any(counter is not None for counter in counters):
                address = {"mac": mac.decode()} if mac else {}
                yield _to_sample(request.subject, _parse_counters(counters) | address)
        elif isinstance(request.subject, _DescribedInterface):
            if any(content is not None for content in contents):
                yield _to_sample(request.subject, _parse_counters(contents))
        elif contents[0] is not None:
            counters = parse_net_dev(contents[0])
            for other in request.subject:
                if other.name in counters:
                    own = counters[other.name]
                    pairs = zip(_FIELD_NAMES, other.counters, strict=True)
                    yield _to_sample(other, {name: own[counter] for name, counter in pairs if counter in own})


def _parse_counters(contents: Sequence[bytes | None]) -> FieldValues:
    """Parse the files of an interface's counters."""
    present = [content.strip() for content in contents if content is not None]
    if len(present) == len(_FIELD_NAMES) and (all_numbers := parse_unsigned_ints(present)) is not None:
        return dict(zip(_FIELD_NAMES, all_numbers, strict=True))
    pairs = zip(_FIELD_NAMES, contents, strict=True)
    numbers = ((name, parse_unsigned_int(content.strip())) for name, content in pairs if content is not None)
    return {name: number for name, number in numbers if number is not None}


def _to_sample(interface: _DescribedInterface, values: FieldValues) -> Sample:
    values.update(interface.constants)
    return Sample(NET, interface.labels, values)


COLLECTOR = Collector("net", (NET,), no_commands_to_send, _collect, at_poll_interval, files=_files)
