"""Reading a config file: all that is wrong with it at once, each with its file, line, key and what would be right."""

import difflib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar, get_args

import yaml
from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from agent.config.model import WAY, WAYS, Config

DEFAULT_PATH = Path("/etc/qmp-agent/agent.yaml")

Place = tuple[str | int, ...]


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing that is wrong.

    Attributes:
        file: the file as it was named.
        line: in it, from 1; 0 where it cannot be told.
        key: as `kafka.bootstrap_servers[0]`; empty for the file as a whole.
        text: what is wrong and what would be right.
    """

    file: str
    line: int
    key: str
    text: str

    def __str__(self) -> str:
        where = f"{self.file}:{self.line}" if self.line else self.file
        return f"{where}: {self.key}: {self.text}" if self.key else f"{where}: {self.text}"


class ConfigError(Exception):
    """A config that cannot be used, with all that is wrong with it."""

    def __init__(self, problems: Sequence[Problem]) -> None:
        super().__init__("\n".join(map(str, problems)))
        self.problems = problems


Model = TypeVar("Model", bound=BaseModel)


def load(path: Path) -> Config:
    """Read and validate the agent's config.

    Raises:
        ConfigError: with every problem there is.
    """
    return read(path, Config)


def read(path: Path, model: type[Model]) -> Model:
    """Read and validate a file of that kind.

    Raises:
        ConfigError: with every problem there is.
    """
    name = str(path)
    try:
        text = path.read_text("utf-8")
    except OSError as error:
        raise ConfigError([Problem(name, 0, "", f"cannot be read: {error.strerror}")]) from error
    except UnicodeDecodeError as error:
        raise ConfigError([Problem(name, 0, "", f"is not UTF-8 text at byte {error.start}")]) from error
    return validate(text, name, model)


def validate(text: str, name: str, model: type[Model]) -> Model:
    """Validate a file's text; `name` is what the problems call it.

    Raises:
        ConfigError: with every problem there is.
    """
    try:
        node = yaml.compose(text, Loader=yaml.SafeLoader)
        lines: dict[Place, int] = {}
        problems = [Problem(name, line, _key(place), "is given twice") for place, line in _walk(node, (), lines)]
        values = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ConfigError([_yaml_problem(name, error)]) from error
    except (ArithmeticError, AttributeError, LookupError, RecursionError, ValueError) as error:
        # What PyYAML lets through of a value that is not of its type, such as 2024-13-45, and of aliases without end.
        raise ConfigError([Problem(name, 0, "", f"is not YAML: {error}")]) from error
    if not isinstance(values, dict):
        cure = "should be keys and values; the least is\n\n  monitors:\n    - dial: /run/qemu/*.qmp\n"
        raise ConfigError([Problem(name, 0, "", cure)])
    try:
        config = model.model_validate(values)
    except ValidationError as error:
        problems += [_problem(name, detail, lines, model) for detail in error.errors(include_url=False)]
        raise ConfigError(sorted(problems, key=lambda p: p.line)) from error
    if problems:
        raise ConfigError(problems)
    return config


def _walk(node: yaml.Node | None, place: Place, lines: dict[Place, int]) -> Iterator[tuple[Place, int]]:
    """Note the line of every key and item; yield those given twice, which YAML would let the last one win."""
    if node is None:
        return
    lines.setdefault(place, node.start_mark.line + 1)
    if isinstance(node, yaml.MappingNode):
        seen = set()
        for key, value in node.value:
            inner = (*place, str(key.value))
            if inner in seen:
                yield inner, key.start_mark.line + 1
            seen.add(inner)
            lines[inner] = key.start_mark.line + 1
            yield from _walk(value, inner, lines)
    elif isinstance(node, yaml.SequenceNode):
        for index, value in enumerate(node.value):
            yield from _walk(value, (*place, index), lines)


def _yaml_problem(name: str, error: yaml.YAMLError) -> Problem:
    mark = getattr(error, "problem_mark", None)
    said = getattr(error, "problem", None) or str(error)
    return Problem(name, mark.line + 1 if mark else 0, "", f"is not YAML: {said}")


def _key(place: Place) -> str:
    text = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in place)
    return text.removeprefix(".")


def _problem(name: str, detail: ErrorDetails, lines: dict[Place, int], model: type[BaseModel]) -> Problem:
    found = tuple(detail["loc"])
    place = tuple(part for part in found if not str(part).startswith(WAY))
    line = next((lines[place[:n]] for n in range(len(place), -1, -1) if place[:n] in lines), 0)
    return Problem(name, line, _key(place), _text(detail, found, model))


def _text(detail: ErrorDetails, place: Place, model: type[BaseModel]) -> str:
    """Return what is wrong in this file's words instead of pydantic's. What may be a secret is not said again."""
    context: dict[str, Any] = detail.get("ctx", {})
    kind, given = detail["type"], detail["input"]
    if kind == "extra_forbidden":
        plain = _key(tuple(part for part in place if isinstance(part, str) and not part.startswith(WAY)))
        if plain in RENAMED:
            return f"was renamed: use {RENAMED[plain]}"
        known = _keys_at(place[:-1], model)
        near = difflib.get_close_matches(str(place[-1]), known, n=1)
        return f"unknown key; did you mean {near[0]}?" if near else f"unknown key; the keys here are {', '.join(known)}"
    text = _TEXTS.get(kind, detail["msg"].removeprefix("Input ")).format(**context)
    return f"{text}, not {given!r}" if isinstance(given, str | int | float) and not _SECRETS & {*place} else text


RENAMED: Mapping[str, str] = {
    "alerts.alertmanager.resend": "resend_interval",
    "jsonl.file": "path",
    "jsonl.keep": "max_files",
    "jsonl.rotate": "max_size",
    "journal.folder": "directory",
    "kafka.create": "create_topics",
    "kafka.create_topics.replication": "replication_factor",
    "kafka.max_record": "max_message_bytes",
    "kafka.servers": "bootstrap_servers",
    "labels.libvirt": "libvirt_xml_dirs",
    "limits.series": "series_per_vm",
    "limits.subjects": "new_subjects_per_hour",
    "memory_budget": "buffer_memory",
    "monitors.connections": "max_connections",
    "monitors.hold": "timeout",
    "monitors.hotplug": "hotplug_dir",
    "prometheus": "web, with listen_address and config_file",
    "timeouts.reply": "response",
    "timeouts.stop": "shutdown",
}
"""Keys that had another name before, by their path without list indices, and the name to use now."""

_SECRETS = frozenset({"password_file", "key", "key_file", "basic_auth_users", "url"})
"""Keys where somebody may have put the secret itself instead of where it lies."""


_TEXTS = {
    "missing": "is missing",
    "value_error": "{error}",
    "greater_than": "should be more than {gt}",
    "greater_than_equal": "should be at least {ge}",
    "less_than": "should be less than {lt}",
    "less_than_equal": "should be at most {le}",
    "literal_error": "should be {expected}",
    "too_short": "should have at least one item",
    "model_type": "should be keys and values",
    "list_type": "should be a list",
}


def _keys_at(place: Place, model: Any) -> list[str]:
    """Return the keys that are known in the section at a place, as pydantic tells it."""
    others: tuple[str, ...] = ()
    for part in place:
        others = ()
        if part in WAYS:
            model, others = WAYS[str(part)], tuple(way.removeprefix(WAY) for way in WAYS)
        elif isinstance(part, str) and model is not None:
            model = next(sections(model.model_fields[part].annotation), None)
    return list(dict.fromkeys((*model.model_fields, *others))) if model is not None else []


def sections(annotation: Any) -> Iterator[type[BaseModel]]:
    """Yield the sections that a key may hold."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for inner in get_args(annotation):
        yield from sections(inner)
