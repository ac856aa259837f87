"""Resource usage of a VM's process and of the process's cgroup. The kernel renders these files without waiting for the process."""

from collections.abc import Iterable, Sequence
from typing import Any

from agent.collectors.base import Collector, Replies, VmFacts, at_poll_interval, no_commands
from agent.host.procfs import family_numbers_parser, group_by_subject, parse_pressure, parse_single_number
from agent.host.types import FileReply, FileRequest
from agent.model.family import Sample
from agent.model.metrics.host import CGROUP, PROCESS
from agent.model.reader import FieldReader

_read_process = FieldReader(PROCESS)
_read_cgroup = FieldReader(CGROUP)

_CGROUP_PARSERS = {
    "memory.current": parse_single_number,
    "memory.max": parse_single_number,
    "memory.swap.current": parse_single_number,
    "memory.events": family_numbers_parser(CGROUP, "memory.events"),
    "cpu.stat": family_numbers_parser(CGROUP, "cpu.stat"),
    "cpu.pressure": parse_pressure,
    "memory.pressure": parse_pressure,
    "io.pressure": parse_pressure,
}


def _process_files(facts: VmFacts) -> Sequence[FileRequest]:
    if facts.process is None:
        return ()
    task = facts.process
    return (
        *(FileRequest(name, task) for name in ("stat", "schedstat", "status", "io")),
        FileRequest("fd", task, count_entries=True),
    )


def _collect_process(replies: Replies) -> Iterable[Sample]:
    for task, files in group_by_subject(replies):
        yield Sample(PROCESS, (), _read_process({**files, "known": {"pid": task.id, **task.values}}))


def _cgroup_files(facts: VmFacts) -> Sequence[FileRequest]:
    if facts.cgroup is None:
        return ()
    return [FileRequest(f"{facts.cgroup}/{name}", facts.cgroup) for name in _CGROUP_PARSERS]


def _collect_cgroup(replies: Replies) -> Iterable[Sample]:
    fields: dict[str, Any] = {}  # nested: the file memory.swap.current is fields["memory"]["swap"]["current"]
    for reply in replies:
        if isinstance(reply, FileReply) and reply.text is not None:
            fields["path"] = reply.request.subject
            name = reply.request.path.rpartition("/")[2]
            *parents, last = name.split(".")
            parent_fields = fields
            for parent in parents:
                parent_fields = parent_fields.setdefault(parent, {})
            parent_fields[last] = _CGROUP_PARSERS[name](reply.text)
    return (Sample(CGROUP, (), _read_cgroup(fields)),) if fields else ()


PROCESSES = Collector("process", (PROCESS,), no_commands, _collect_process, at_poll_interval, files=_process_files)
CGROUPS = Collector("cgroup", (CGROUP,), no_commands, _collect_cgroup, at_poll_interval, files=_cgroup_files)
