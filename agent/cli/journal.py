"""`qmp-agent journal`: shows, exports and requeues the records in the journal. Stop the agent before `requeue`."""

import contextlib
import os
from collections import Counter
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

from agent.common.durations_and_sizes import format_bytes
from agent.common.errors import SubcommandError
from agent.delivery.journal import recovery, statements
from agent.delivery.journal.database import JournalDatabase, JournalError, connect_readonly
from agent.delivery.journal.journal import JOURNAL_FILE, UNREPORTED_DROPS
from agent.delivery.journal.lock import lock_directory
from agent.model.agent_lifecycle_records import QUEUE_NAMES
from agent.model.record import EncodedRecord

REQUEUE_QUEUE = "events"
"""Name of the queue that receives all requeued records."""


class JournalToolError(SubcommandError):
    """The journal cannot be read or changed."""


def quarantined_files(directory: Path) -> list[Path]:
    """Return the quarantined files in a journal's directory, oldest first."""
    names = directory.glob(f"{JOURNAL_FILE}.damaged-*")
    return sorted(path for path in names if not path.name.endswith(recovery.LOG_SUFFIXES))


@contextlib.contextmanager
def _open_readonly(path: Path) -> Iterator[JournalDatabase]:
    """Open a journal file for reading while the `with` block runs. An agent may write to the file at the same time.

    Raises:
        JournalToolError: the file does not exist or cannot be read.
    """
    if not path.exists():
        raise JournalToolError(
            f"{path} does not exist: no agent has used this journal yet, or journal.directory is wrong"
        )
    try:
        database = JournalDatabase(path, connect_readonly, readonly=True)
    except JournalError as error:
        raise JournalToolError(f"{path}: {error}") from error
    try:
        yield database
    except JournalError as error:
        raise JournalToolError(f"{path}: {error}") from error
    finally:
        database.close()


def describe_journal(directory: Path) -> Iterator[str]:
    """Yield lines that describe the waiting records, the dead letters, the unreported drops and the quarantined files.

    Raises:
        JournalToolError: the journal cannot be read.
    """
    path = directory / JOURNAL_FILE
    with _open_readonly(path) as database:
        yield f"{path}: {format_bytes(path.stat().st_size)}"
        for queue in QUEUE_NAMES:
            summary = database.summarize_rows(queue)
            span = (
                f", from {_local_time(summary.first_ns)} to {_local_time(summary.last_ns)}" if summary.records else ""
            )
            yield f"  {queue}: {summary.records} waiting records, {format_bytes(summary.bytes)}{span}"
            for kind, count in sorted(summary.types.items()):
                yield f"    {count:8} {kind}"
        dead_letters = Counter((record.type, reason) for reason, record in database.dead_letters())
        yield f"  dead letters: {dead_letters.total()}"
        for (kind, reason), count in sorted(dead_letters.items(), key=lambda item: item[0][::-1]):
            yield f"    {count:8} {kind} ({reason})"
        drops = database.persistent_entries().get(UNREPORTED_DROPS)
        for drop in drops if isinstance(drops, list) else ():
            yield f"  dropped, but not yet reported downstream: {drop['records']} of queue {drop['queue']} ({drop['reason']})"
    for quarantined in quarantined_files(directory):
        command = f"qmp-agent journal export --file {quarantined.name}"
        yield f"{quarantined}: damaged and quarantined; `{command}` prints its readable records"


def journal_records_as_json_lines(directory: Path, *, file: str | None, dead_letters: bool) -> Iterator[bytes]:
    """Yield records as JSON lines.

    Args:
        directory: the journal's directory.
        file: the name of a quarantined file, whose readable records are exported; None for the journal itself.
        dead_letters: whether to export the dead letters instead of the waiting records.

    Raises:
        JournalToolError: the journal or the file cannot be read.
    """
    if file is not None:
        for record in _salvage_records(directory, file):
            yield record.body + b"\n"
        return
    with _open_readonly(directory / JOURNAL_FILE) as database:
        if dead_letters:
            for _, record in database.dead_letters():
                yield record.body + b"\n"
            return
        for queue in QUEUE_NAMES:
            for record in _read_waiting_records(database, queue):
                yield record.body + b"\n"


def _read_waiting_records(database: JournalDatabase, queue: str) -> Iterator[EncodedRecord]:
    after = 0
    while True:
        records, _, last = database.read_records(queue, after, 500, 8 << 20)
        if last == after:
            return
        yield from records
        after = last


def _salvage_records(directory: Path, file: str) -> Iterator[EncodedRecord]:
    path = directory / file
    if path.parent != directory or path not in quarantined_files(directory):
        known = ", ".join(quarantined.name for quarantined in quarantined_files(directory)) or "none"
        raise JournalToolError(f"{file} is not a quarantined file in {directory}; quarantined files: {known}")
    try:
        for _, records in recovery.salvage_records(path, QUEUE_NAMES):
            yield from records
    except JournalError as error:
        raise JournalToolError(f"{path}: {error}") from error


def requeue_undelivered_records(directory: Path, *, file: str | None) -> int:
    """Enqueue records for delivery at the agent's next start. Records keep their ids, so that consumers can deduplicate.

    Args:
        directory: the journal's directory.
        file: the name of a quarantined file, whose readable records are enqueued; None for the journal's dead letters.

    Returns:
        The number of enqueued records.

    Raises:
        JournalToolError: an agent uses the journal, or a file cannot be read or written.
    """
    try:
        lock_descriptor = lock_directory(directory)
    except (JournalError, OSError) as error:
        raise JournalToolError(f"{error}; stop the agent first") from error
    try:
        database = JournalDatabase(directory / JOURNAL_FILE)
        try:
            dead_letters = (record for _, record in database.dead_letters())
            records = list(dead_letters if file is None else _salvage_records(directory, file))
            changes = [statements.insert_records(REQUEUE_QUEUE, records, [])]
            if file is None:
                changes.append(statements.delete_dead_letters())
            database.commit(changes)
        finally:
            database.close()
    except JournalError as error:
        raise JournalToolError(f"{directory / JOURNAL_FILE}: {error}") from error
    finally:
        os.close(lock_descriptor)
    return len(records)


def _local_time(time_ns: int) -> str:
    return datetime.fromtimestamp(time_ns / 1e9, UTC).astimezone().strftime("%Y-%m-%d %H:%M:%S")
