"""The config loader: a good file loads, and all problems of a bad file are reported with the line, the key and the fix."""

import importlib
import json
import pkgutil
from datetime import date
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from agent import monitors
from agent.config.errors import ConfigError
from agent.config.loader import load_config, section_models_in, validate_yaml
from agent.config.model import AllowedQemuChangesConfig, Config
from agent.delivery.sinks.base_config import SinkConfig
from agent.monitors import DialConfig, DiscovererConfig
from tests.lab import golden_files

FOLDER = golden_files.FOLDER / "config"
MINIMAL: dict[str, Any] = {"monitors": [{"dial": "/run/qemu/*.qmp"}]}


def config_files(kind: str) -> list[Any]:
    return [pytest.param(path, id=path.name) for path in sorted(FOLDER.glob(f"*.{kind}.yml"))]


def problems_of(text: str) -> list[str]:
    """Return the problems of a config file with this text."""
    try:
        validate_yaml(text, "f", Config)
    except ConfigError as error:
        return [str(problem) for problem in error.problems]
    return []


@pytest.mark.parametrize("path", config_files("good"))
def test_a_good_file_loads(path: Path) -> None:
    assert isinstance(load_config(path), Config)


@pytest.mark.parametrize("path", config_files("bad"))
def test_all_problems_of_a_bad_file_are_reported(path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        validate_yaml(path.read_text("utf-8"), path.name, Config)
    report = "".join(f"{problem}\n" for problem in caught.value.problems)
    assert golden_files.same_text(f"config/{path.stem}.txt", report)
    assert str(caught.value) + "\n" == report


def test_the_shipped_config_states_the_defaults() -> None:
    shipped = load_config(FOLDER.parents[2] / "config" / "agent.yaml")
    assert shipped == load_config(FOLDER / "minimal.good.yml")


def test_every_kind_of_value_is_loaded() -> None:
    config = load_config(FOLDER / "all.good.yml")
    assert [entry.model_dump(exclude_defaults=True) for entry in config.monitors] == [
        {"dial": "/run/libvirt/qemu/channel/*/qmp.sock"},
        {"dial": "tcp:[::1]:4444"},
        {"dial_per_poll": "/var/run/qemu-server/*.qmp", "timeout": 1.0, "own_monitor_dir": "/run/qmp-agent/own"},
        {"libvirt": "qemu:///system", "read_only": True},
        {"listen": "/run/qmp-agent/monitor.sock", "users": ["64055", "qemu"], "groups": ["kvm"], "max_connections": 5},
        {"listen": "tcp:[::]:4445", "tls": {"ca": "/etc/ca.pem", "certificate": "/etc/agent.pem"}},
    ]
    assert config.kafka is not None
    assert config.kafka.topics.samples == "vm-samples"
    assert config.kafka.request_timeout == 2.5
    assert config.intervals.model_dump() == {
        "poll": 0.5,
        "guest_memory": 60,
        "migrations_and_jobs": 0.5,
        "kvm": 120,
        "resync": 3600,
        "storage": 15,
        "host": 20,
    }
    assert config.allow.guest_stats_interval == 10
    assert config.allow.latency_histograms == (500_000, 20_000_000, 1_000_000_000)
    jsonl = load_config(FOLDER / "jsonl.good.yml")
    assert jsonl.monitors == [DialConfig(dial="/run/vm1.qmp")]
    assert (jsonl.jsonl.max_size, jsonl.jsonl.max_files) == (3 << 29, 0)


@pytest.mark.parametrize(
    ("name", "content", "text"),
    [
        ("none.yml", None, "cannot be read: No such file or directory"),
        ("folder", "", "cannot be read: Is a directory"),
        ("latin1.yml", b"host: \xe9t\xe9\n", "is not UTF-8 text at byte 6"),
    ],
)
def test_an_unreadable_file_is_named(tmp_path: Path, name: str, content: bytes | str | None, text: str) -> None:
    path = tmp_path / name
    if isinstance(content, bytes):
        path.write_bytes(content)
    elif content is not None:
        path.mkdir()
    with pytest.raises(ConfigError) as caught:
        load_config(path)
    assert str(caught.value) == f"{path}: {text}"


def test_a_missing_key_is_reported_at_the_line_of_its_section() -> None:
    assert problems_of("host: x\n\nkafka: {}\nmonitors: [{}]\n") == [
        "f:3: kafka.bootstrap_servers: is required",
        "f:4: monitors[0].dial: is required",
    ]


def test_every_discoverer_config_is_registered() -> None:
    for module in pkgutil.iter_modules(monitors.__path__):
        importlib.import_module(f"agent.monitors.{module.name}")
    assert {*DiscovererConfig.__subclasses__()} == {*monitors.MONITOR_CONFIG_TYPES}, "name it in MONITOR_CONFIG_TYPES"


def test_every_sink_config_is_registered() -> None:
    sinks = {
        name: section.model_construct(path=Path("/r.jsonl"))
        for name, field in Config.model_fields.items()
        for section in section_models_in(field.annotation)
        if issubclass(section, SinkConfig)
    }
    everything = load_config(FOLDER / "minimal.good.yml").model_copy(update=sinks)
    assert {key.partition(".")[0] for key in everything._configured_sinks()} == sinks.keys()


LATENCY_ERROR = "should be true, false, or a list of up to 32 ascending durations from 1us to 1h"


@pytest.mark.parametrize("value", [5, "perhaps", {}, [0], ["0.5us"], ["61m"], ["1ms", "1ms"], ["2ms", "1ms"], [1] * 33])
def test_invalid_boundaries_of_latency_histograms_are_refused(value: Any) -> None:
    with pytest.raises(ValidationError, match=LATENCY_ERROR):
        AllowedQemuChangesConfig.model_validate({"latency_histograms": value})


def test_latency_histograms_are_off_unless_enabled_and_have_default_boundaries() -> None:
    assert AllowedQemuChangesConfig().latency_histograms == ()
    assert AllowedQemuChangesConfig.model_validate({"latency_histograms": False}).latency_histograms == ()
    boundaries = AllowedQemuChangesConfig.model_validate({"latency_histograms": True}).latency_histograms
    assert (boundaries[0], boundaries[-1], len(boundaries)) == (100_000, 10_000_000_000, 16)
    assert all(lower < upper <= 2.5 * lower for lower, upper in pairwise(boundaries))


def test_a_config_is_immutable() -> None:
    config = validate_yaml(yaml.safe_dump(MINIMAL), "minimal", Config)
    with pytest.raises(ValueError, match="frozen"):
        config.host = "x"


# --- Arbitrary files ---

SECTIONS = [
    *Config.model_fields,
    "dial",
    "users",
    "tls",
    "bootstrap_servers",
    "topics",
    "listen",
    "poll",
    "level",
    "path",
    "max_size",
]
leaves = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=8)
    | st.dates(max_value=date(2100, 1, 1))
    | st.binary(max_size=4)
    | st.sampled_from(["10s", "1GiB", "/run/x", "tcp:a:1", "a:1", "9" * 400 + "s", "9" * 400 + "B", 10**400, "1e400s"])
)
values = st.recursive(
    leaves,
    lambda v: st.lists(v, max_size=3) | st.dictionaries(st.sampled_from(SECTIONS) | leaves, v, max_size=4),
    max_leaves=10,
)


@given(st.dictionaries(st.sampled_from(SECTIONS), values, max_size=5))
def test_arbitrary_values_raise_only_config_errors(given_values: dict[str, Any]) -> None:
    for problem in problems_of(yaml.safe_dump(MINIMAL | given_values, allow_unicode=True)):
        assert problem.startswith("f")


@given(
    st.lists(
        st.sampled_from(
            ["monitors", "dial", ":", ": ", "\n", "  ", "- ", "[", "]", "{", "}", ",", "&a ", "*a", "? ", "|", ">"]
        )
        | st.sampled_from(
            ['"', "'", "!!int ", "!!set ", "!!binary ", "<<", "---", "...", "#", "\t", "0x", "2024-13-45", "1:99:99"]
        )
        | st.text(max_size=3),
        max_size=20,
    ).map("".join)
)
def test_arbitrary_text_raises_only_config_errors(text: str) -> None:
    assert isinstance(problems_of(text), list)


def test_the_json_schema_accepts_good_files_and_rejects_most_bad_ones() -> None:
    from jsonschema import Draft202012Validator  # noqa: PLC0415 - a large import for this test only

    from tools.config_schema import config_schema  # noqa: PLC0415

    validator = Draft202012Validator(config_schema())
    for path in FOLDER.glob("*.good.yml"):
        assert [e.message for e in validator.iter_errors(yaml.safe_load(path.read_text()))] == [], path.name
    for name in ("keys", "values", "shapes", "renamed", "none", "missing", "empty", "word", "list"):
        value = json.loads(json.dumps(yaml.safe_load((FOLDER / f"{name}.bad.yml").read_text()), default=str))
        assert not validator.is_valid(value), name


def test_a_misspelled_key_is_not_also_reported_as_missing(tmp_path: Path) -> None:
    path = tmp_path / "agent.yaml"
    path.write_text("monitors:\n  - dail: /run/qemu/*.qmp\n")
    with pytest.raises(ConfigError) as caught:
        load_config(path)
    assert [str(problem) for problem in caught.value.problems] == [
        f"{path}:2: monitors[0].dail: unknown key; did you mean dial?"
    ]


def test_two_kinds_of_monitors_in_one_entry_are_refused_with_the_fix(tmp_path: Path) -> None:
    path = tmp_path / "agent.yaml"
    path.write_text("monitors:\n  - dial: /run/qemu/*.qmp\n    listen: /run/qmp-agent/monitor.sock\n")
    with pytest.raises(ConfigError) as caught:
        load_config(path)
    assert [str(problem) for problem in caught.value.problems] == [
        f"{path}:3: monitors[0].listen: is of another kind of entry: move it into an entry of its own, after a new `-`"
    ]


def test_an_alertmanager_without_a_scheme_is_refused_with_an_example(tmp_path: Path) -> None:
    path = tmp_path / "agent.yaml"
    path.write_text("monitors: [{dial: /run/*.qmp}]\nalerts: {alertmanager: {urls: [127.0.0.1:9093]}}\n")
    with pytest.raises(ConfigError, match=r'urls\[0\]: should be a URL such as "http://127'):
        load_config(path)
