"""CPU time of a VM's vCPU and I/O threads, by the thread ids that QEMU reports at attach."""

from collections.abc import Callable, Iterable, Sequence

from agent.collectors.base import Collector, Replies, at_poll_interval, no_commands
from agent.host.procfs import group_by_subject
from agent.host.types import FileRequest, Task
from agent.model.family import Family, Sample
from agent.model.metrics.host import IOTHREAD, VCPU
from agent.model.reader import Reader


def _files(tasks: Sequence[Task]) -> list[FileRequest]:
    return [FileRequest(f"task/{task.id}/{name}", task) for task in tasks for name in ("stat", "schedstat")]


def _collect(family: Family) -> Callable[[Replies], Iterable[Sample]]:
    read = Reader(family)

    def collect(replies: Replies) -> Iterable[Sample]:
        for task, files in group_by_subject(replies):
            yield Sample(family, (task.name,), read({**files, "known": {"thread": task.id, **task.values}}))

    return collect


VCPUS = Collector(
    "vcpu", (VCPU,), no_commands, _collect(VCPU), at_poll_interval, files=lambda facts: _files(facts.vcpus)
)
IOTHREADS = Collector(
    "iothread",
    (IOTHREAD,),
    no_commands,
    _collect(IOTHREAD),
    at_poll_interval,
    files=lambda facts: _files(facts.iothreads),
)
