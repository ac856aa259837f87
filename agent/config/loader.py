"""Reads and validates config files. Reports all problems of a file at once, each with the file, the line, the key and the fix."""

import difflib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar, get_args

import yaml
from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from agent.config.errors import ConfigError, ConfigProblem
from agent.config.model import MONITOR_CONFIG_TYPE_BY_TAG, MONITOR_TAG_PREFIX, Config

Location = tuple[str | int, ...]
"""The keys and the list indices that lead to a value, from the root of the file."""


Model = TypeVar("Model", bound=BaseModel)


def load_config(path: Path) -> Config:
    """Read and validate the agent's config file.

    Raises:
        ConfigError: the file cannot be read or has problems.
    """
    return read_yaml_file(path, Config)


def read_yaml_file(path: Path, model: type[Model]) -> Model:
    """Read and validate a YAML file.

    Args:
        path: the file.
        model: the pydantic model of the file's content.

    Raises:
        ConfigError: the file cannot be read or has problems.
    """
    name = str(path)
    try:
        text = path.read_text("utf-8")
    except OSError as error:
        raise ConfigError([ConfigProblem(name, 0, "", f"cannot be read: {error.strerror}")]) from error
    except UnicodeDecodeError as error:
        raise ConfigError([ConfigProblem(name, 0, "", f"is not UTF-8 text at byte {error.start}")]) from error
    return validate_yaml(text, name, model)


def validate_yaml(text: str, name: str, model: type[Model]) -> Model:
    """Validate the text of a YAML file.

    Args:
        text: the text.
        name: the name of the file in problems.
        model: the pydantic model of the file's content.

    Raises:
        ConfigError: the text has problems.
    """
    try:
        node = yaml.compose(text, Loader=yaml.SafeLoader)
        lines: dict[Location, int] = {}
        duplicates = list(_find_duplicates(node, (), lines))
        problems = [
            ConfigProblem(name, line, _format_location(location), "duplicate key") for location, line in duplicates
        ]
        values = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ConfigError([_problem_of_yaml(name, error)]) from error
    except (ArithmeticError, AttributeError, LookupError, RecursionError, ValueError) as error:
        # PyYAML raises these errors for invalid values, such as the date 2024-13-45, and for aliases that contain themselves.
        raise ConfigError([ConfigProblem(name, 0, "", f"is not YAML: {error}")]) from error
    if not isinstance(values, dict):
        text = "should be a mapping; the minimal config is\n\n  monitors:\n    - dial: /run/qemu/*.qmp\n"
        raise ConfigError([ConfigProblem(name, 0, "", text)])
    try:
        config = model.model_validate(values)
    except ValidationError as error:
        details = error.errors(include_url=False)
        problems += [
            _problem_of_value(name, each, lines, model) for each in details if not _is_misspelled(each, details)
        ]
        raise ConfigError(sorted(problems, key=lambda problem: problem.line)) from error
    if problems:
        raise ConfigError(problems)
    return config


def _find_duplicates(
    node: yaml.Node | None, location: Location, lines: dict[Location, int]
) -> Iterator[tuple[Location, int]]:
    """Yield the location and the line of each duplicate key, because PyYAML accepts duplicate keys.

    Args:
        node: the parsed YAML at the location; None for an empty file.
        location: the location.
        lines: receives the line of each key and each list item.
    """
    if node is None:
        return
    lines.setdefault(location, node.start_mark.line + 1)
    if isinstance(node, yaml.MappingNode):
        seen = set()
        for key, value in node.value:
            inner = (*location, str(key.value))
            if inner in seen:
                yield inner, key.start_mark.line + 1
            seen.add(inner)
            lines[inner] = key.start_mark.line + 1
            yield from _find_duplicates(value, inner, lines)
    elif isinstance(node, yaml.SequenceNode):
        for index, value in enumerate(node.value):
            yield from _find_duplicates(value, (*location, index), lines)


def _problem_of_yaml(name: str, error: yaml.YAMLError) -> ConfigProblem:
    mark = getattr(error, "problem_mark", None)
    reason = getattr(error, "problem", None) or str(error)
    return ConfigProblem(name, mark.line + 1 if mark else 0, "", f"is not YAML: {reason}")


def _format_location(location: Location) -> str:
    """Return a location as text, such as `kafka.bootstrap_servers[0]`."""
    text = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in location)
    return text.removeprefix(".")


def _problem_of_value(
    name: str, detail: ErrorDetails, lines: dict[Location, int], model: type[BaseModel]
) -> ConfigProblem:
    tagged = tuple(detail["loc"])  # pydantic adds the tag of a monitor entry to the location
    location = tuple(part for part in tagged if not str(part).startswith(MONITOR_TAG_PREFIX))
    line = next((lines[location[:n]] for n in range(len(location), -1, -1) if location[:n] in lines), 0)
    return ConfigProblem(name, line, _format_location(location), _problem_text(detail, tagged, model))


def _is_misspelled(detail: ErrorDetails, details: Sequence[ErrorDetails]) -> bool:
    """Return whether a missing key is only misspelled. The loader reports a misspelled key as unknown, and not as missing."""
    if detail["type"] != "missing":
        return False
    *section, key = detail["loc"]
    unknown = [each["loc"] for each in details if each["type"] == "extra_forbidden" and [*each["loc"][:-1]] == section]
    return any(difflib.get_close_matches(str(location[-1]), [str(key)]) for location in unknown)


def _problem_text(detail: ErrorDetails, location: Location, model: type[BaseModel]) -> str:
    """Return the text of a problem in the terms of the config file, not of pydantic. Values that may be secrets are left out."""
    context: dict[str, Any] = detail.get("ctx", {})
    kind, given = detail["type"], detail["input"]
    if kind == "extra_forbidden":
        key = _format_location(
            tuple(part for part in location if isinstance(part, str) and not part.startswith(MONITOR_TAG_PREFIX))
        )
        if key in RENAMED_KEYS:
            return f"unknown key; it was renamed to {RENAMED_KEYS[key]}"
        if f"{MONITOR_TAG_PREFIX}{location[-1]}" in MONITOR_CONFIG_TYPE_BY_TAG and key.startswith("monitors."):
            return "is of another kind of entry: move it into an entry of its own, after a new `-`"
        known = _keys_at(location[:-1], model)
        near = difflib.get_close_matches(str(location[-1]), known, n=1)
        return f"unknown key; did you mean {near[0]}?" if near else f"unknown key; known keys: {', '.join(known)}"
    text = _TEXT_BY_ERROR.get(kind, detail["msg"].removeprefix("Input ")).format(**context)
    return f"{text}, not {given!r}" if isinstance(given, str | int | float) and not _SECRET_KEYS & {*location} else text


RENAMED_KEYS: Mapping[str, str] = {
    "alerts.guest": "guest_filesystems (levels, hysteresis, overrides) and guests (max_frozen_time, max_clock_offset)",
    "alerts.custom.lasts": "resolve_after",
    "alerts.pool": "pools, with overrides in place of its key pools",
    "alerts.write_threshold": "disks, with overrides in place of its key disks",
    "alerts.alertmanager.resend": "resend_interval",
    "alerts.alertmanager.url": "urls, a list",
    "intervals.migration": "migrations_and_jobs",
    "journal.alerts": "max_size.alerts",
    "journal.events": "max_size.events",
    "journal.samples": "max_size.samples",
    "jsonl.file": "path",
    "jsonl.keep": "max_files",
    "jsonl.rotate": "max_size",
    "journal.folder": "directory",
    "kafka.create": "create_topics",
    "kafka.create_topics.replication": "replication_factor",
    "kafka.max_record": "max_message_bytes",
    "kafka.servers": "bootstrap_servers",
    "labels.libvirt": "libvirt_xml_dirs",
    "limits.new_subjects_per_hour": "new_subjects_per_vm_per_hour",
    "limits.series": "series_per_vm",
    "limits.subjects": "new_subjects_per_vm_per_hour",
    "memory_budget": "buffer_memory",
    "monitors.burst": "dial_per_poll",
    "monitors.connections": "max_connections",
    "monitors.hold": "timeout",
    "monitors.hotplug": "own_monitor_dir",
    "monitors.hotplug_dir": "own_monitor_dir",
    "prometheus": "web, with listen_address and config_file",
    "timeouts.reply": "response",
    "timeouts.retry": "max_retry_delay",
    "timeouts.stop": "shutdown",
}
"""The new name of each renamed key, by its old name without list indices."""

_SECRET_KEYS = frozenset(
    {
        "password_file",
        "key",
        "key_file",
        "basic_auth_users",
        "urls",
        "bearer_token_file",
        "client_secret_file",
        "token_file",
    }
)
"""Keys whose values are left out of problems. An operator may have written a secret in place of the path of its file."""


_TEXT_BY_ERROR = {
    "missing": "is required",
    "value_error": "{error}",
    "greater_than": "should be more than {gt}",
    "greater_than_equal": "should be at least {ge}",
    "less_than": "should be less than {lt}",
    "less_than_equal": "should be at most {le}",
    "literal_error": "should be {expected}",
    "too_long": "should have at most {max_length} entries",
    "too_short": "should not be empty",
    "string_too_short": "should not be empty",
    "model_type": "should be a mapping",
    "list_type": "should be a list",
}
"""Text of a problem, by pydantic's type of error."""


def _keys_at(location: Location, model: Any) -> list[str]:
    """Return the known keys of the section at a location; empty if the location is not a section."""
    entry_keys: tuple[str, ...] = ()
    for part in location:
        entry_keys = ()
        if part in MONITOR_CONFIG_TYPE_BY_TAG:
            model, entry_keys = (
                MONITOR_CONFIG_TYPE_BY_TAG[str(part)],
                tuple(tag.removeprefix(MONITOR_TAG_PREFIX) for tag in MONITOR_CONFIG_TYPE_BY_TAG),
            )
        elif isinstance(part, str) and model is not None:
            model = next(section_models_in(model.model_fields[part].annotation), None)
    return list(dict.fromkeys((*model.model_fields, *entry_keys))) if model is not None else []


def section_models_in(annotation: Any) -> Iterator[type[BaseModel]]:
    """Yield the pydantic models of sections in the type annotation of a key."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for inner in get_args(annotation):
        yield from section_models_in(inner)
