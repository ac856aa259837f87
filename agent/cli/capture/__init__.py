"""`qmp-agent capture` and `replay`: capture the QMP traffic of one monitor in a file, and replay the file to an agent.

Start at `traffic_proxy` and at `replay`. `capture_file` reads and writes the files.
"""

from agent.common.errors import SubcommandError


class CaptureError(SubcommandError):
    """A monitor cannot be captured, or a capture file cannot be replayed."""
