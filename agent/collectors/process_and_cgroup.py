"""Resource usage of a VM's process and of its cgroup. Reading these files never waits for the process or for storage."""

from collections.abc import Iterable, Sequence

from agent.collectors.base import Collector, Replies, VmFacts, at_poll_interval, no_commands_to_send
from agent.host.procfs import (
    KernelFileParser,
    name_value_file_format,
    parse_process_state,
    pressure_file_format,
    process_io_file_format,
    process_stat_file_format,
    process_status_file_format,
    schedstat_file_format,
    single_number_file_format,
    split_stat,
)
from agent.host.types import KernelFilesToRead
from agent.model.family import FieldValues, Sample
from agent.model.field_reader import FieldReader
from agent.model.metrics.vm_process_and_interfaces import CGROUP, PROCESS

_read_constants = FieldReader(PROCESS)

_add_stat = KernelFileParser(PROCESS, "stat", process_stat_file_format)

_PROCESS_PARSERS = {
    "schedstat": KernelFileParser(PROCESS, "schedstat", schedstat_file_format),
    "status": KernelFileParser(PROCESS, "status", process_status_file_format),
    "io": KernelFileParser(PROCESS, "io", process_io_file_format),
    "fd/": KernelFileParser(PROCESS, "fd", single_number_file_format),
}
_PROCESS_FILES = ("stat", *_PROCESS_PARSERS)

_CGROUP_PARSERS = {
    "memory.current": KernelFileParser(CGROUP, "memory.current", single_number_file_format),
    "memory.max": KernelFileParser(CGROUP, "memory.max", single_number_file_format),
    "memory.swap.current": KernelFileParser(CGROUP, "memory.swap.current", single_number_file_format),
    "memory.events": KernelFileParser(
        CGROUP, "memory.events", name_value_file_format("high", "max", "oom", "oom_kill")
    ),
    "cpu.stat": KernelFileParser(
        CGROUP, "cpu.stat", name_value_file_format("usage_usec", "nr_periods", "nr_throttled", "throttled_usec")
    ),
    "cpu.pressure": KernelFileParser(CGROUP, "cpu.pressure", pressure_file_format),
    "memory.pressure": KernelFileParser(CGROUP, "memory.pressure", pressure_file_format),
    "io.pressure": KernelFileParser(CGROUP, "io.pressure", pressure_file_format),
}
_CGROUP_FILES = tuple(_CGROUP_PARSERS)


def _process_files(facts: VmFacts) -> Sequence[KernelFilesToRead]:
    task = facts.process
    if task is None:
        return ()
    return (KernelFilesToRead("", _PROCESS_FILES, _read_constants({"known": {"pid": task.id, **task.extra_values}})),)


def _collect_process(replies: Replies) -> Iterable[Sample]:
    for request, (stat, *contents) in replies:
        if stat is None:  # the process has ended
            continue
        values: FieldValues = dict(request.subject)
        words = split_stat(stat)
        _add_stat(words, values)
        if (state := parse_process_state(words)) is not None:
            values["state"] = state
        for add, content in zip(_PROCESS_PARSERS.values(), contents, strict=True):
            if content is not None:
                add(content, values)
        yield Sample(PROCESS, (), values)


def _cgroup_files(facts: VmFacts) -> Sequence[KernelFilesToRead]:
    return (KernelFilesToRead(facts.cgroup, _CGROUP_FILES, facts.cgroup),) if facts.cgroup is not None else ()


def _collect_cgroup(replies: Replies) -> Iterable[Sample]:
    for request, contents in replies:
        if all(content is None for content in contents):
            continue
        values: FieldValues = {"path": request.subject}
        for add, content in zip(_CGROUP_PARSERS.values(), contents, strict=True):
            if content is not None:
                add(content, values)
        yield Sample(CGROUP, (), values)


PROCESSES = Collector(
    "process", (PROCESS,), no_commands_to_send, _collect_process, at_poll_interval, files=_process_files
)
CGROUPS = Collector("cgroup", (CGROUP,), no_commands_to_send, _collect_cgroup, at_poll_interval, files=_cgroup_files)
