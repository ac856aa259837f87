"""Fetches jars from Maven Central."""

import subprocess
from pathlib import Path

from agent.cli.demo.images import MissingDependencyError
from tests.lab.machine import require


def fetch_jars(pom: Path, folder: Path, product: str) -> None:
    """Copy the jars that a project depends on into a directory.

    Args:
        pom: The project's file.
        folder: The directory.
        product: What the jars are, for the error's text.

    Raises:
        MissingDependencyError: Maven is missing, or cannot fetch the jars.
    """
    require("mvn", "Maven")
    command = ["mvn", "-q", "-B", "-f", str(pom), "dependency:copy-dependencies", f"-DoutputDirectory={folder}"]
    try:
        subprocess.run([*command, "-DincludeScope=runtime"], check=True, capture_output=True, text=True)
    except subprocess.CalledProcessError as error:
        errors = [line for line in error.stdout.splitlines() if "ERROR] " in line and "problems were" not in line]
        cause = next((line.partition("ERROR] ")[2] for line in errors if line.strip()), "no error message")
        message = f"mvn cannot fetch {product}: {cause}; it needs a network or Maven's cache"
        raise MissingDependencyError(message) from error
