"""Downloads the jars of Apache Kafka once, and builds the command lines of its Java programs.

`python -m tests.lab.kafka` downloads the jars in advance.
"""

import hashlib
import os
import re
import shutil
import subprocess
import tempfile
import threading
from pathlib import Path
from typing import Final

from agent.cli.demo.images import build_directory_once, cache_directory
from tests.lab.machine import require
from tests.lab.maven import fetch_jars

POM: Final = Path(__file__).parent / "kafka" / "pom.xml"

_DUMP_SECONDS: Final = 60


def kafka_home() -> Path:
    """Return the directory of Kafka's jars. The first call downloads the jars from Maven Central in a few seconds.

    Blocks.

    Raises:
        MissingDependencyError: Java or Maven is missing, or Maven cannot fetch the jars.
    """
    require("java", "a Java runtime, 17 or newer,")
    require("setpriv", "util-linux")
    version = re.search(r"<artifactId>kafka_[^<]*</artifactId>\s*<version>([^<]+)", POM.read_text())
    assert version is not None, f"{POM} names no version of Kafka"
    return build_directory_once(cache_directory() / f"kafka-{version[1]}", _fetch)


def java_command(home: Path) -> list[str]:
    """Return a command line that runs a Java class of Kafka. Append the name of the class.

    An archive of the loaded classes, made by `warm`, halves the start time. The log goes to standard error.
    """
    archive = _archive(home)
    return [
        *("setpriv", "--pdeathsig", "KILL", "java", "-Xmx256m", "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1"),
        *("-XX:-UsePerfData", *([f"-XX:SharedArchiveFile={archive}"] if archive.exists() else [])),
        *("-Dorg.slf4j.simpleLogger.showDateTime=true", "-Dorg.slf4j.simpleLogger.dateTimeFormat=HH:mm:ss.SSS"),
        *("-cp", ":".join(sorted(map(str, home.glob("*.jar"))))),
    ]


def warm(home: Path, properties: Path) -> None:
    """Run a broker until it has started, and archive the Java classes that it has loaded. Without the archive, Java starts slower.

    Args:
        home: the directory of the jars.
        properties: the properties file of a broker with a formatted data directory.
    """
    if _archive(home).exists():
        return
    with tempfile.TemporaryDirectory(dir=home.parent, prefix=".kafka-") as scratch:
        dumped = Path(scratch, "archive")
        command = java_command(home)
        at = command.index("-cp")
        command[at:at] = [f"-XX:ArchiveClassesAtExit={dumped}"]
        with subprocess.Popen(
            [*command, "kafka.Kafka", str(properties)], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
        ) as process:
            assert process.stderr is not None
            deadline = threading.Timer(_DUMP_SECONDS, process.kill)
            deadline.start()
            for line in process.stderr:
                if b"Kafka Server started" in line:
                    process.terminate()
            deadline.cancel()
        if dumped.exists():
            dumped.replace(_archive(home))


def _archive(home: Path) -> Path:
    """Return the path of the class archive for this build of Java. Java ignores archives of other builds."""
    java = os.path.realpath(shutil.which("java") or "java")
    build = hashlib.sha256(f"{java} {os.stat(java).st_mtime_ns}".encode()).hexdigest()[:12]  # noqa: PTH116 - a str
    return home / f"classes-{build}.jsa"


def _fetch(scratch: Path) -> None:
    fetch_jars(POM, scratch / "built", "Kafka")
