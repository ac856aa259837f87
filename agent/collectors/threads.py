"""CPU time of a VM's vCPU threads and iothreads. The agent queries the thread ids from QEMU at attach and after a hotplug."""

from collections.abc import Callable, Iterable, Sequence

from agent.collectors.base import Collector, Replies, VmFacts, at_poll_interval, no_commands_to_send
from agent.host.procfs import (
    KernelFileParser,
    parse_process_state,
    process_stat_file_format,
    schedstat_file_format,
    split_stat,
)
from agent.host.types import KernelFilesToRead, ProcessOrThread
from agent.model.family import Family, FieldValues, Sample
from agent.model.field_reader import FieldReader
from agent.model.metrics.vm_process_and_interfaces import IOTHREAD, VCPU

_FILES = ("stat", "schedstat")


def _thread_collector(name: str, family: Family, tasks_of: Callable[[VmFacts], Sequence[ProcessOrThread]]) -> Collector:
    """Return the collector of the threads that `tasks_of` returns."""
    read_constants = FieldReader(family)
    add_stat = KernelFileParser(family, "stat", process_stat_file_format)
    add_schedstat = KernelFileParser(family, "schedstat", schedstat_file_format)

    def constants_of(task: ProcessOrThread) -> FieldValues:
        return read_constants({"known": {"thread": task.id, **task.extra_values}, "stat": {"state": ""}})

    def files(facts: VmFacts) -> Sequence[KernelFilesToRead]:
        return [
            KernelFilesToRead(f"task/{task.id}", _FILES, ((task.name,), constants_of(task))) for task in tasks_of(facts)
        ]

    def collect(replies: Replies) -> Iterable[Sample]:
        for request, (stat, schedstat) in replies:
            if stat is None:  # the thread has ended
                continue
            labels, constants = request.subject
            values: FieldValues = {}
            if schedstat is not None:
                add_schedstat(schedstat, values)
            words = split_stat(stat)
            add_stat(words, values)
            values.update(constants)
            if (state := parse_process_state(words)) is not None:
                values["state"] = state
            else:
                del values["state"]
            yield Sample(family, labels, values)

    return Collector(name, (family,), no_commands_to_send, collect, at_poll_interval, files=files)


VCPUS = _thread_collector("vcpu", VCPU, lambda facts: facts.vcpus)
IOTHREADS = _thread_collector("iothread", IOTHREAD, lambda facts: facts.iothreads)
