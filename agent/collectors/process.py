"""Resource usage of a VM's process and of its cgroup. Reading these files never waits for the process or for storage."""

from collections.abc import Iterable, Sequence

from agent.collectors.base import Collector, Replies, VmFacts, at_poll_interval, no_commands_to_send
from agent.host.procfs import (
    FileParser,
    io_format,
    lines_format,
    number_format,
    parse_process_state,
    pressure_format,
    schedstat_format,
    split_stat,
    stat_format,
    status_format,
)
from agent.host.types import FileRequest
from agent.model.family import FieldValues, Sample
from agent.model.field_reader import FieldReader
from agent.model.metrics.vm_process import CGROUP, PROCESS

_read_constants = FieldReader(PROCESS)

_add_stat = FileParser(PROCESS, "stat", stat_format)

_PROCESS_PARSERS = {
    "schedstat": FileParser(PROCESS, "schedstat", schedstat_format),
    "status": FileParser(PROCESS, "status", status_format),
    "io": FileParser(PROCESS, "io", io_format),
    "fd/": FileParser(PROCESS, "fd", number_format),
}
_PROCESS_FILES = ("stat", *_PROCESS_PARSERS)

_CGROUP_PARSERS = {
    "memory.current": FileParser(CGROUP, "memory.current", number_format),
    "memory.max": FileParser(CGROUP, "memory.max", number_format),
    "memory.swap.current": FileParser(CGROUP, "memory.swap.current", number_format),
    "memory.events": FileParser(CGROUP, "memory.events", lines_format("high", "max", "oom", "oom_kill")),
    "cpu.stat": FileParser(
        CGROUP, "cpu.stat", lines_format("usage_usec", "nr_periods", "nr_throttled", "throttled_usec")
    ),
    "cpu.pressure": FileParser(CGROUP, "cpu.pressure", pressure_format),
    "memory.pressure": FileParser(CGROUP, "memory.pressure", pressure_format),
    "io.pressure": FileParser(CGROUP, "io.pressure", pressure_format),
}
_CGROUP_FILES = tuple(_CGROUP_PARSERS)


def _process_files(facts: VmFacts) -> Sequence[FileRequest]:
    task = facts.process
    if task is None:
        return ()
    return (FileRequest("", _PROCESS_FILES, _read_constants({"known": {"pid": task.id, **task.extra_values}})),)


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


def _cgroup_files(facts: VmFacts) -> Sequence[FileRequest]:
    return (FileRequest(facts.cgroup, _CGROUP_FILES, facts.cgroup),) if facts.cgroup is not None else ()


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
