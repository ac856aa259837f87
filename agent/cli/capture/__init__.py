"""`qmp-agent record` and `replay`: what is said on one monitor kept in a file, and a stand-in that says it to an agent again."""

from agent.common.errors import CommandFailedError


class CaptureError(CommandFailedError):
    """It cannot be recorded or replayed; the text says why, for people."""
