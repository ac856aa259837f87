"""CPU time of a VM's vCPU threads and iothreads. QEMU reports their thread ids at attach and after a hotplug."""

from collections.abc import Callable, Iterable, Sequence

from agent.collectors.base import Collector, Replies, at_poll_interval, no_commands
from agent.host.procfs import group_by_subject
from agent.host.types import FileRequest, Task
from agent.model.family import Family, Sample
from agent.model.metrics.host import IOTHREAD, VCPU
from agent.model.reader import FieldReader


def _files_of_threads(tasks: Sequence[Task]) -> list[FileRequest]:
    return [FileRequest(f"task/{task.id}/{name}", task) for task in tasks for name in ("stat", "schedstat")]


def _collect_family(family: Family) -> Callable[[Replies], Iterable[Sample]]:
    """Return the function that turns replies into samples of this family."""
    read = FieldReader(family)

    def collect(replies: Replies) -> Iterable[Sample]:
        for task, files in group_by_subject(replies):
            yield Sample(family, (task.name,), read({**files, "known": {"thread": task.id, **task.values}}))

    return collect


VCPUS = Collector(
    "vcpu",
    (VCPU,),
    no_commands,
    _collect_family(VCPU),
    at_poll_interval,
    files=lambda facts: _files_of_threads(facts.vcpus),
)
IOTHREADS = Collector(
    "iothread",
    (IOTHREAD,),
    no_commands,
    _collect_family(IOTHREAD),
    at_poll_interval,
    files=lambda facts: _files_of_threads(facts.iothreads),
)
