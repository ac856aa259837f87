"""`qmp-agent record` and `replay`: record the QMP traffic of one monitor in a file, and replay it to an agent.

Start at `recorder` and at `replay`. `capture_file` reads and writes the files.
"""

from agent.common.errors import SubcommandError


class CaptureError(SubcommandError):
    """A monitor cannot be recorded, or a capture file cannot be replayed."""
