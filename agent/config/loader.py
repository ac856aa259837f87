"""Reads and validates config files, and reports all problems at once, each with its file, line, key and remedy."""

import difflib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar, get_args

import yaml
from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from agent.config.model import ENTRY_TYPES, TAG_PREFIX, Config

DEFAULT_PATH = Path("/etc/qmp-agent/agent.yaml")

Location = tuple[str | int, ...]
"""The keys and list indices that lead to a value, as pydantic gives them."""


@dataclass(frozen=True, slots=True)
class Problem:
    """One problem of a config file.

    Attributes:
        file: the path of the file.
        line: the line, from 1; 0 if it is unknown.
        key: the key, such as `kafka.bootstrap_servers[0]`; empty for the file as a whole.
        text: what is wrong, and what is allowed.
    """

    file: str
    line: int
    key: str
    text: str

    def __str__(self) -> str:
        where = f"{self.file}:{self.line}" if self.line else self.file
        return f"{where}: {self.key}: {self.text}" if self.key else f"{where}: {self.text}"


class ConfigError(Exception):
    """A config has problems.

    Attributes:
        problems: all of them.
    """

    def __init__(self, problems: Sequence[Problem]) -> None:
        super().__init__("\n".join(map(str, problems)))
        self.problems = problems


Model = TypeVar("Model", bound=BaseModel)


def load(path: Path) -> Config:
    """Read and validate the agent's config.

    Raises:
        ConfigError: with all problems.
    """
    return read(path, Config)


def read(path: Path, model: type[Model]) -> Model:
    """Read and validate a YAML file.

    Args:
        path: the file.
        model: the pydantic model of its content.

    Raises:
        ConfigError: with all problems.
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
    """Validate the text of a YAML file.

    Args:
        text: the text.
        name: the name of the file in the problems.
        model: the pydantic model of its content.

    Raises:
        ConfigError: with all problems.
    """
    try:
        node = yaml.compose(text, Loader=yaml.SafeLoader)
        lines: dict[Location, int] = {}
        problems = [Problem(name, line, _key(place), "duplicate key") for place, line in _duplicates(node, (), lines)]
        values = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ConfigError([_yaml_problem(name, error)]) from error
    except (ArithmeticError, AttributeError, LookupError, RecursionError, ValueError) as error:
        # PyYAML does not catch these for values that do not fit their type, such as 2024-13-45, and for recursive aliases.
        raise ConfigError([Problem(name, 0, "", f"is not YAML: {error}")]) from error
    if not isinstance(values, dict):
        text = "should be a mapping; the minimal config is\n\n  monitors:\n    - dial: /run/qemu/*.qmp\n"
        raise ConfigError([Problem(name, 0, "", text)])
    try:
        config = model.model_validate(values)
    except ValidationError as error:
        problems += [_problem(name, detail, lines, model) for detail in error.errors(include_url=False)]
        raise ConfigError(sorted(problems, key=lambda p: p.line)) from error
    if problems:
        raise ConfigError(problems)
    return config


def _duplicates(node: yaml.Node | None, place: Location, lines: dict[Location, int]) -> Iterator[tuple[Location, int]]:
    """Yield duplicate keys, which PyYAML would silently accept, and add the line of every key and item to `lines`."""
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
            yield from _duplicates(value, inner, lines)
    elif isinstance(node, yaml.SequenceNode):
        for index, value in enumerate(node.value):
            yield from _duplicates(value, (*place, index), lines)


def _yaml_problem(name: str, error: yaml.YAMLError) -> Problem:
    mark = getattr(error, "problem_mark", None)
    reason = getattr(error, "problem", None) or str(error)
    return Problem(name, mark.line + 1 if mark else 0, "", f"is not YAML: {reason}")


def _key(place: Location) -> str:
    text = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in place)
    return text.removeprefix(".")


def _problem(name: str, detail: ErrorDetails, lines: dict[Location, int], model: type[BaseModel]) -> Problem:
    location = tuple(detail["loc"])
    place = tuple(part for part in location if not str(part).startswith(TAG_PREFIX))
    line = next((lines[place[:n]] for n in range(len(place), -1, -1) if place[:n] in lines), 0)
    return Problem(name, line, _key(place), _text(detail, location, model))


def _text(detail: ErrorDetails, location: Location, model: type[BaseModel]) -> str:
    """Return what is wrong, in the terms of the config file instead of pydantic's. A value that may be a secret is left out."""
    context: dict[str, Any] = detail.get("ctx", {})
    kind, given = detail["type"], detail["input"]
    if kind == "extra_forbidden":
        key = _key(tuple(part for part in location if isinstance(part, str) and not part.startswith(TAG_PREFIX)))
        if key in RENAMED:
            return f"unknown key; it was renamed to {RENAMED[key]}"
        known = _keys_at(location[:-1], model)
        near = difflib.get_close_matches(str(location[-1]), known, n=1)
        return f"unknown key; did you mean {near[0]}?" if near else f"unknown key; known keys: {', '.join(known)}"
    text = _TEXTS.get(kind, detail["msg"].removeprefix("Input ")).format(**context)
    return f"{text}, not {given!r}" if isinstance(given, str | int | float) and not _SECRETS & {*location} else text


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
    "monitors.burst": "dial_per_poll",
    "monitors.connections": "max_connections",
    "monitors.hold": "timeout",
    "monitors.hotplug": "hotplug_dir",
    "prometheus": "web, with listen_address and config_file",
    "timeouts.reply": "response",
    "timeouts.stop": "shutdown",
}
"""The new name of each renamed key, by the old key without list indices."""

_SECRETS = frozenset({"password_file", "key", "key_file", "basic_auth_users", "url"})
"""Keys whose values an error does not show, because an operator may have written a secret instead of a file's path."""


_TEXTS = {
    "missing": "is required",
    "value_error": "{error}",
    "greater_than": "should be more than {gt}",
    "greater_than_equal": "should be at least {ge}",
    "less_than": "should be less than {lt}",
    "less_than_equal": "should be at most {le}",
    "literal_error": "should be {expected}",
    "too_short": "should not be empty",
    "string_too_short": "should not be empty",
    "model_type": "should be a mapping",
    "list_type": "should be a list",
}


def _keys_at(location: Location, model: Any) -> list[str]:
    """Return the known keys of the section at a location."""
    entry_keys: tuple[str, ...] = ()
    for part in location:
        entry_keys = ()
        if part in ENTRY_TYPES:
            model, entry_keys = ENTRY_TYPES[str(part)], tuple(tag.removeprefix(TAG_PREFIX) for tag in ENTRY_TYPES)
        elif isinstance(part, str) and model is not None:
            model = next(sections(model.model_fields[part].annotation), None)
    return list(dict.fromkeys((*model.model_fields, *entry_keys))) if model is not None else []


def sections(annotation: Any) -> Iterator[type[BaseModel]]:
    """Yield the sections that a key's type annotation allows."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for inner in get_args(annotation):
        yield from sections(inner)
