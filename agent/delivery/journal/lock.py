"""The lock of a journal's directory."""

import fcntl
import os
from pathlib import Path

from agent.delivery.journal.database import JournalError, JournalFaultKind


def lock_directory(directory: Path) -> int:
    """Lock a journal's directory for this process, and return the file descriptor that holds the lock.

    Raises:
        JournalError: another process holds the lock.
        OSError: the directory is not writable.
    """
    descriptor = os.open(directory / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o640)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        raise JournalError(JournalFaultKind.UNUSABLE, f"another agent uses {directory}") from None
    return descriptor
