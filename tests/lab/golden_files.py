"""Golden files: expected results. `GOLDEN=write pytest ...` rewrites the files; review the difference before you commit it."""

import json
import os
from pathlib import Path
from typing import Any, Final

FOLDER: Final = Path(__file__).parent.parent / "golden"
WRITE: Final = os.environ.get("GOLDEN") == "write"


def load(name: str) -> Any:
    """Return the content of a JSON file in tests/golden."""
    return json.loads((FOLDER / name).read_text("utf-8"))


def save(name: str, value: Any) -> None:
    """Write a value to a JSON file in tests/golden, indented."""
    (FOLDER / name).write_text(json.dumps(value, indent=1, ensure_ascii=False) + "\n", "utf-8")


def same_text(name: str, actual: str) -> bool:
    """Return whether a golden file contains exactly this text."""
    if WRITE:
        (FOLDER / name).write_text(actual, "utf-8")
    return (FOLDER / name).read_text("utf-8") == actual
