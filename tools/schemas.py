"""The published schemas of records: a file in config/schemas for each record type, and a check against the last release.

`python -m tools.schemas write` writes the files. `check` fails if a schema is not compatible with the last release, but has the same
version. `release` stores the current schemas as those of the last release.
"""

import argparse
import json
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

from agent.schemas.data import published_data_schemas
from tools.schema_compatibility import find_broken_promises

DIRECTORY: Final = Path(__file__).parents[1] / "config/schemas"
RELEASED: Final = DIRECTORY / "released.json"
"""The schemas of the last release, by URI."""

Schemas = Mapping[str, Mapping[str, Any]]


def schema_files() -> dict[Path, str]:
    """Return the text of each file. The name of a file is that of its schema, with the version."""
    return {
        DIRECTORY / f"{_file_name(schema['$id'])}.json": json.dumps(schema, indent=2) + "\n"
        for schema in published_data_schemas().values()
    }


def _file_name(uri: str) -> str:
    """Return the file name of a schema: `urn:qmp-agent:qemu.vm.gone:1` is in qemu.vm.gone.1."""
    return ".".join(uri.split(":")[2:])


def find_incompatibilities(released: Schemas, current: Schemas) -> Iterator[str]:
    """Yield a text for each incompatibility with the last release.

    Args:
        released: the schemas of the last release, by URI.
        current: the current schemas, by URI.
    """
    names = {uri.rpartition(":")[0] for uri in current}
    for uri, schema in released.items():
        if uri in current:
            yield from (f"{uri}: {promise}" for promise in find_broken_promises(schema, current[uri]))
        elif uri.rpartition(":")[0] not in names:
            yield f"{uri}: the record type is gone"


def _write() -> None:
    files = schema_files()
    DIRECTORY.mkdir(exist_ok=True)
    for path in set(DIRECTORY.glob("*.json")) - files.keys() - {RELEASED}:
        path.unlink()
    for path, text in files.items():
        path.write_text(text, "utf-8")


def _check() -> None:
    released = json.loads(RELEASED.read_text("utf-8"))
    problems = list(find_incompatibilities(released, _current_by_uri()))
    if problems:
        problems.append(
            "these schemas are incompatible with the last release: raise their versions in "
            "agent/model/schema_versions.py, or make them compatible"
        )
        sys.exit("\n".join(problems))


def _release() -> None:
    RELEASED.write_text(json.dumps(_current_by_uri(), indent=1, sort_keys=True) + "\n", "utf-8")


def _current_by_uri() -> dict[str, dict[str, Any]]:
    return {schema["$id"]: schema for schema in published_data_schemas().values()}


def main() -> None:
    """Run the command."""
    actions = {"write": _write, "check": _check, "release": _release}
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("action", choices=actions)
    actions[parser.parse_args().action]()


if __name__ == "__main__":
    main()
