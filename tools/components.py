"""Completes the list of components (CycloneDX) of a release. It adds the version, and for the container image also the Debian packages.

cyclonedx-py reads the version from pyproject.toml, which has none. `make package` and deploy/release call this.
"""

import argparse
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any
from urllib.parse import quote


def complete(document: dict[str, Any], version: str, packages: Iterable[str] = ()) -> dict[str, Any]:
    """Return a CycloneDX document with the version of its root component and with further components.

    Args:
        document: the Python components.
        version: the version of the agent.
        packages: one line for each Debian package: name, version and architecture.
    """
    root = {**document["metadata"]["component"], "version": version}
    return {
        **document,
        "metadata": {**document["metadata"], "component": root},
        "components": [*document["components"], *(_component(*line.split()) for line in packages)],
    }


def _component(name: str, version: str, architecture: str) -> dict[str, str]:
    purl = f"pkg:deb/debian/{name}@{quote(version, safe='')}?arch={architecture}"
    return {"type": "library", "bom-ref": purl, "name": name, "version": version, "purl": purl}


def _main() -> None:
    parser = argparse.ArgumentParser(description="Complete a CycloneDX list of components.")
    parser.add_argument("version")
    parser.add_argument("source", type=Path)
    parser.add_argument("target", type=Path)
    parser.add_argument("--packages", type=Path, help="lines of dpkg-query: name, version and architecture")
    parsed = parser.parse_args()
    packages = parsed.packages.read_text("utf-8").splitlines() if parsed.packages else []
    if parsed.packages and not packages:
        parser.error(f"{parsed.packages} has no packages")
    document = complete(json.loads(parsed.source.read_text("utf-8")), parsed.version, packages)
    parsed.target.write_text(json.dumps(document, indent=2) + "\n", "utf-8")


if __name__ == "__main__":
    _main()
