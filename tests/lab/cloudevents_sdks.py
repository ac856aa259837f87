"""The official CloudEvents SDKs for Python, Go and JavaScript as readers of Kafka messages.

The programs in Go and JavaScript are built once, from the module proxy and the npm registry, into the cache directory of the user.
"""

import hashlib
import json
import shutil
import subprocess
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from cloudevents.core.bindings import kafka

from agent.cli.demo.images import MissingDependencyError, build_directory_once, cache_directory
from agent.delivery.sinks.kafka.message import ContentMode, KafkaMessage

BUILD_SECONDS: Final = 600
READ_SECONDS: Final = 300
_SOURCES: Final = Path(__file__).parent / "sdks"

Event = Mapping[str, Any]
"""The attributes and the data of a CloudEvent as an SDK returned them."""
Reader = Callable[[ContentMode, Sequence[KafkaMessage]], list[Event]]


def read_with_python(mode: ContentMode, messages: Sequence[KafkaMessage]) -> list[Event]:
    """Return the events that the SDK for Python reads from messages."""
    read = kafka.from_structured_event if mode is ContentMode.STRUCTURED else kafka.from_binary_event
    events = [read(kafka.KafkaMessage(dict(headers), key, value or b"")) for key, value, headers in messages]
    return [{"attributes": _to_texts(event.get_attributes()), "data": event.get_data()} for event in events]


def _to_texts(attributes: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value.isoformat() if name == "time" else value for name, value in attributes.items()}


def read_with_go(_mode: ContentMode, messages: Sequence[KafkaMessage]) -> list[Event]:
    """Return the events that the SDK for Go reads from messages. It detects the content mode itself.

    Raises:
        MissingDependencyError: Go is missing, or cannot fetch the SDK.
    """

    def build(scratch: Path) -> None:
        _run("go", "build", "-o", str(scratch / "built" / "read"), ".", folder=_SOURCES / "go")

    folder = build_directory_once(_cache_folder("go"), build)
    return _read_with_program([str(folder / "read")], messages)


def read_with_javascript(_mode: ContentMode, messages: Sequence[KafkaMessage]) -> list[Event]:
    """Return the events that the SDK for JavaScript reads from messages. It detects the content mode itself.

    Raises:
        MissingDependencyError: Node.js or npm is missing, or npm cannot fetch the SDK.
    """

    def build(scratch: Path) -> None:
        shutil.copytree(_SOURCES / "js", scratch / "built")
        _run("npm", "ci", "--ignore-scripts", "--no-audit", "--no-fund", folder=scratch / "built")

    folder = build_directory_once(_cache_folder("js"), build)
    return _read_with_program(["node", str(folder / "read.mjs")], messages)


def _cache_folder(language: str) -> Path:
    """Return the directory of a program. It changes with the program's source and the versions of its modules."""
    digest = hashlib.sha256(b"".join(path.read_bytes() for path in sorted((_SOURCES / language).iterdir())))
    return cache_directory() / f"cloudevents-{language}-{digest.hexdigest()[:12]}"


def _run(*command: str, folder: Path) -> None:
    try:
        subprocess.run(command, cwd=folder, check=True, capture_output=True, text=True, timeout=BUILD_SECONDS)
    except FileNotFoundError as error:
        raise MissingDependencyError(f"{command[0]} is missing") from error
    except subprocess.CalledProcessError as error:
        raise MissingDependencyError(f"{' '.join(command[:2])}: {error.stderr.strip()}") from error


def _read_with_program(command: Sequence[str], messages: Sequence[KafkaMessage]) -> list[Event]:
    lines = [
        {
            "key": key.decode(),
            "value": (value or b"").decode(),
            "headers": {name: text.decode() for name, text in headers},
        }
        for key, value, headers in messages
    ]
    text = "".join(json.dumps(line) + "\n" for line in lines)
    result = subprocess.run(command, input=text, check=True, stdout=subprocess.PIPE, text=True, timeout=READ_SECONDS)
    return [json.loads(line) for line in result.stdout.rstrip("\n").split("\n")]


READERS: Final[Mapping[str, Reader]] = {
    "python": read_with_python,
    "go": read_with_go,
    "javascript": read_with_javascript,
}
