"""Types that define a collector. Pure."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, TypeVar

from agent.host.types import KernelFilesToRead, ProcessOrThread, VmHostInterface
from agent.model.family import Family, Sample
from agent.model.record import Severity
from agent.qmp.commands import Command
from agent.qmp.errors import QmpError, UnexpectedReplyTypeError, UnreadableReplyError

MAX_SAMPLES = 4096
"""Maximum number of samples from one poll of a collector. Without a limit, a hostile reply with a million entries would delay other VMs."""

Replies = Sequence[Any]
"""Results of a collector's poll: QEMU's reply or a QmpError for each command, then a KernelFileContents for each KernelFilesToRead."""


@dataclass(frozen=True, slots=True)
class PollIntervals:
    """Intervals in seconds at which collectors poll values whose changes QEMU does not report by events.

    Attributes:
        poll: disks, and all collectors without their own interval.
        guest_memory: memory statistics of the guest's balloon driver.
        migrations_and_jobs: migrations, jobs and memory dumps while they run.
        kvm: KVM's statistics.
        resync: all collectors, because an event may have been lost.
    """

    poll: float = 10.0
    guest_memory: float = 30.0
    migrations_and_jobs: float = 1.0
    kvm: float = 300.0
    resync: float = 300.0


@dataclass(frozen=True, slots=True)
class VirtioDisk:
    """A virtio disk that QEMU itself serves, in contrast to a vhost disk.

    Attributes:
        device: the disk's stable name, which snapshots and mirrors do not change.
        path: the QOM path of its virtio device.
        queues: number of its queues.
    """

    device: str
    path: str
    queues: int


@dataclass(frozen=True, slots=True)
class VmFacts:
    """Facts about one VM that its collectors use, discovered at attach and at each resync.

    Attributes:
        balloon: the QOM path of the VM's balloon device; None if the VM has no balloon.
        guest_stats_seconds: the interval at which QEMU polls the balloon driver's memory statistics; 0 if QEMU does not poll them.
        migration_events: whether QEMU emits MIGRATION events. Without these events, the agent polls for migrations at the poll interval.
        version: QEMU's major and minor version, for features that cannot be detected in another way.
        commands: the names of the commands that QEMU supports; empty if they are unknown.
        process: the VM's process on this host; None if unknown.
        vcpus: the threads of the VM's vCPUs; empty if the process is unknown.
        iothreads: the threads of the VM's iothreads; empty if the process is unknown.
        cgroup: the directory of the process's cgroup (version 2); None if unknown.
        interfaces: the host's network interfaces of the VM: taps, macvtaps and virtual functions.
        hv_balloon: whether the VM has a Hyper-V balloon.
        receives_events: whether the connection receives events. Without events, collectors that wait for events use the poll interval.
        guest_agent_port: the QOM path of the virtio serial port of the guest agent; None if the VM has no such port.
        images_listed_without_flat: number of images in the reply to query-named-block-nodes without `flat`, including repeated images;
            0 if QEMU has `flat`.
        virtio_disks: the virtio disks whose queues the config allows to query.
    """

    balloon: str | None = None
    guest_stats_seconds: int = 0
    migration_events: bool = False
    version: tuple[int, int] = (0, 0)
    commands: frozenset[str] = frozenset()
    process: ProcessOrThread | None = None
    vcpus: tuple[ProcessOrThread, ...] = ()
    iothreads: tuple[ProcessOrThread, ...] = ()
    cgroup: str | None = None
    interfaces: tuple[VmHostInterface, ...] = ()
    hv_balloon: bool = False
    receives_events: bool = True
    guest_agent_port: str | None = None
    images_listed_without_flat: int = 0
    virtio_disks: tuple[VirtioDisk, ...] = ()

    def has_command(self, command: str) -> bool:
        """Return whether QEMU supports a command; true if QEMU's commands are unknown."""
        return not self.commands or command in self.commands


T = TypeVar("T")


def require_type(reply: Any, expected: type[T]) -> T:
    """Return the reply if it has the expected type.

    Raises:
        QmpError: the reply is an error.
        UnexpectedReplyTypeError: the reply has another type.
    """
    if isinstance(reply, expected):
        return reply
    if isinstance(reply, QmpError):
        raise reply
    raise UnexpectedReplyTypeError(f"expected {expected.__name__}, got {type(reply).__name__}")


def optional_reply(reply: Any, expected: type[T]) -> T | None:
    """Return the reply if it has the expected type; otherwise return None.

    An error is no failure here, because an error usually means that the VM lacks the feature.

    Raises:
        UnreadableReplyError: the reply cannot be read.
    """
    if isinstance(reply, UnreadableReplyError):
        raise reply
    return reply if isinstance(reply, expected) else None


class PollResult(NamedTuple):
    """One poll of a collector.

    Attributes:
        samples: the samples.
        time_ns: the time just before the commands were sent, in nanoseconds since the epoch.
        monotonic_seconds: the same time in seconds on the monotonic clock, for rates.
    """

    samples: Sequence[Sample] = ()
    time_ns: int = 0
    monotonic_seconds: float = 0.0

    def find_matching_sample(self, sample: Sample) -> Sample | None:
        """Return this poll's sample of the same family and labels; None if this poll has no such sample."""
        return next(
            (
                sample_of_poll
                for sample_of_poll in self.samples
                if sample_of_poll.family is sample.family and sample_of_poll.labels == sample.labels
            ),
            None,
        )


@dataclass(frozen=True, slots=True)
class TransitionBetweenPolls:
    """A change between two polls, such as the end of a migration. The agent emits a record about each change once.

    Attributes:
        family: the family of the record's fields; the record's type is `qemu.<name of the family>`.
        values: the record's fields.
        severity: the record's severity.
    """

    family: Family
    values: Mapping[str, Any]
    severity: Severity = Severity.INFO


def no_commands_to_send(_facts: VmFacts) -> tuple[()]:
    """Return no command. Use this function as `Collector.commands` of a collector that reads only files."""
    return ()


def no_files_to_read(_facts: VmFacts) -> tuple[()]:
    """Return no file. Use this function as `Collector.files` of a collector that reads no file."""
    return ()


def at_poll_interval(_samples: Sequence[Sample], _facts: VmFacts, intervals: PollIntervals) -> float | None:
    """Return the poll interval. Use this function as `Collector.next_poll_delay`."""
    return intervals.poll


def on_event_else_poll_interval(_samples: Sequence[Sample], facts: VmFacts, intervals: PollIntervals) -> float | None:
    """Return None, to wait for an event; or the poll interval if no events arrive. Use this function as `Collector.next_poll_delay`."""
    return None if facts.receives_events else intervals.poll


def _no_next_poll(_samples: Sequence[Sample], _facts: VmFacts, _intervals: PollIntervals) -> float | None:
    return None


def _return_samples_unchanged(_before: PollResult, now: PollResult) -> Sequence[Sample]:
    return now.samples


def _no_transitions(_before: PollResult, _now: PollResult) -> tuple[()]:
    return ()


@dataclass(frozen=True, slots=True)
class Collector:
    """One collector: the commands to send, and functions that turn the replies into samples.

    Attributes:
        name: the collector's name. Event definitions refer to collectors by name in `invalidates`.
        families: the families of the samples.
        commands: returns the commands to send, given the facts about the VM; empty if the VM lacks the feature.
        collect: returns the samples in the replies. Raises QmpError for an error or an unexpected reply.
        next_poll_delay: returns the seconds until the next poll, given the last samples. None waits for an event or the next resync.
        topology: returns values of the samples, such as node names. A change of these values runs the collectors in `invalidates`.
        invalidates: the names of the collectors to run when `topology` changes, because no event reports that their results are stale.
        derive: returns the samples of the present poll, with values that need two polls, such as a rate. The arguments are the previous
            and the present poll. At the first poll of a session, the previous poll is empty.
        transitions: returns the changes between the previous and the present poll, to emit as records.
        from_event: functions that return the samples in an event's data, by the event's name.
        files: returns the files of the host's kernel to read. A collector without commands also runs while QEMU is stalled.
        accesses_storage: whether QEMU accesses the storage for the commands. On hung storage, these commands stop the guest.
        subjects: returns the subject of each command: what the command asks about, such as a queue of a disk. A collector needs subjects
            if the replies do not name them. `collect` then gets pairs of a subject and a reply.
    """

    name: str
    families: tuple[Family, ...]
    commands: Callable[[VmFacts], Sequence[Command]]
    collect: Callable[[Replies], Iterable[Sample]]
    next_poll_delay: Callable[[Sequence[Sample], VmFacts, PollIntervals], float | None] = _no_next_poll
    topology: Callable[[Sequence[Sample]], object] = lambda _samples: None
    invalidates: tuple[str, ...] = ()
    derive: Callable[[PollResult, PollResult], Sequence[Sample]] = _return_samples_unchanged
    transitions: Callable[[PollResult, PollResult], Iterable[TransitionBetweenPolls]] = _no_transitions
    from_event: Mapping[str, Callable[[Mapping[str, Any]], Iterable[Sample]]] = field(default_factory=dict)
    files: Callable[[VmFacts], Sequence[KernelFilesToRead]] = no_files_to_read
    accesses_storage: bool = False
    subjects: Callable[[VmFacts], Sequence[Any]] | None = None

    def pair_replies_with_subjects(self, facts: VmFacts, replies: Replies) -> Replies:
        """Return the replies to pass to `collect`, each paired with its subject if the collector has `subjects`.

        Return no replies if the number of subjects has changed since the commands were sent.
        """
        if self.subjects is None:
            return replies
        subjects = self.subjects(facts)
        return list(zip(subjects, replies, strict=True)) if len(subjects) == len(replies) else ()

    def missing_command(self, facts: VmFacts) -> str:
        """Return the name of the first command that QEMU does not support; empty if QEMU supports all commands of the collector."""
        return next((command.name for command in self.commands(facts) if not facts.has_command(command.name)), "")

    @property
    def needs_previous(self) -> bool:
        """True if the samples or the transitions depend on the previous poll."""
        return self.derive is not _return_samples_unchanged or self.transitions is not _no_transitions

    @property
    def reads_only_host_files(self) -> bool:
        """True if the collector sends no command to QEMU."""
        return self.commands is no_commands_to_send
