"""Default paths on the host."""

from pathlib import Path
from typing import Final

CONFIG_PATH: Final = Path("/etc/qmp-agent/agent.yaml")
