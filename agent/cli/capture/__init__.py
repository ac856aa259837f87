"""`qmp-agent record` and `replay`: record the QMP traffic of one monitor in a file, and replay it to an agent."""

from agent.common.errors import CommandFailedError


class CaptureError(CommandFailedError):
    """Recording or replaying fails."""
