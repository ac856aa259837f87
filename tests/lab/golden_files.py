"""Files that say what is expected. `GOLDEN=write pytest ...` writes them anew; read the difference before it is kept."""

import json
import os
from pathlib import Path
from typing import Any, Final

FOLDER: Final = Path(__file__).parent.parent / "golden"
WRITE: Final = os.environ.get("GOLDEN") == "write"


def load(name: str) -> Any:
    """Return what a JSON file holds."""
    return json.loads((FOLDER / name).read_text("utf-8"))


def save(name: str, value: Any) -> None:
    """Write a JSON file as people read it."""
    (FOLDER / name).write_text(json.dumps(value, indent=1, ensure_ascii=False) + "\n", "utf-8")


def same_text(name: str, actual: str) -> bool:
    """Return whether a file holds just this text."""
    if WRITE:
        (FOLDER / name).write_text(actual, "utf-8")
    return (FOLDER / name).read_text("utf-8") == actual
