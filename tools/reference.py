"""docs/metrics.md, docs/records.md and docs/qmp-commands.md, made from the catalogue and from records of a real run.

`python -m tools.reference metrics|records|queries` writes one of them.

What no catalogue has (the series of sessions and of the agent itself) is read off a specimen: an agent that was told one thing of
each kind.
"""

import argparse
import asyncio
import json
import logging
import re
import sys
import time
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from agent.alerts.rules import RULES
from agent.app.agent import Agent
from agent.cli import schema
from agent.collectors import ALL, ALL_FEATURES
from agent.config.model import Config
from agent.exposition.prometheus import render
from agent.exposition.series_limits import SeriesLimits
from agent.model.events import ROWS, EventRow
from agent.model.family import Family, Field, Kind, Sample
from agent.model.metrics import FAMILIES, TRANSITIONS
from agent.model.metrics.about import ABOUT
from agent.model.metrics.block import BLOCK, BLOCK_SPACE
from agent.model.metrics.runstate import RUNSTATE
from agent.model.record import Record, Severity, Vm
from agent.monitors import Monitor
from agent.qmp.queries import ROWS as QUERIES
from agent.qmp.queries import Query, QueryPolicy
from agent.session import host_process
from agent.session.api import MonitorState, MonitorStatus, PollOutcome
from agent.session.identity import Build
from agent.session.session import THREADS

EXAMPLES = Path(__file__).parents[1] / "tests/golden/records.jsonl"
"""One record of each type that a real run made: `make examples`."""

_MADE = "<!-- Made by `make generate` from the code; a test fails where it is not what the code says. -->\n"

_UNITS = {"bytes": "bytes", "seconds": "seconds", "ratio": "ratio", "second": "a second"}

_JOIN = """Every series of a VM has the labels `vm_uuid` and `vm`; those that are named below come with them. For all else that is known of
a VM, join with `qemu_vm_info`:

    rate(qemu_block_write_bytes_total[5m]) * on (vm_uuid) group_left (machine, pid) qemu_vm_info

A series is there only where QEMU, or the host, gave the figure. What has no series is in [records](records.md).
"""

_OWN = """## Sessions and the agent itself

From what the agent does, not from QEMU.

| series | type | unit | labels | what it is |
|---|---|---|---|---|
"""

_ENVELOPE = """Every record is a [CloudEvents 1.0](https://cloudevents.io/) event in JSON structured mode;
`config/record.schema.json` is its schema. `id` is unique: deduplicate on it. `partitionkey` is Kafka's key, the VM's UUID, so that a
VM's records stay in order; `sequence` counts all records of one run of the agent without a gap. `data` is flat, and its fields have
the names and units of the [metrics](metrics.md). The examples are out of a real run, with QEMU {version}.
"""


def metrics() -> str:
    """Return docs/metrics.md: every series, a row each."""
    return "\n".join((_MADE, "# Metrics\n", _JOIN, *map(_family, FAMILIES), _OWN + "".join(_own())))


def _family(family: Family) -> str:
    labels = "".join(f"`{name}`, " for name in family.labels).removesuffix(", ")
    where = f"Label{'s' if len(family.labels) > 1 else ''} {labels}. " if labels else ""
    record = "No record of its own: it is in alerts." if family is BLOCK_SPACE else f"Record `{family.type}`."
    change = " Made only when something in it changed." if family.on_change else ""
    rows = "".join(
        f"| `{family.series(field)}` | {_kind(field)} | {_unit(field)} | {_cell(field.help)} | {_source(field)} |\n"
        for field in family.exported_fields()
    )
    series = f"\n| series | type | unit | what it is | field |\n|---|---|---|---|---|\n{rows}" if rows else ""
    told = "".join(
        f"| `{field.name}` | {_cell(field.help)} | {_source(field)} |\n"
        for field in family.fields
        if field not in set(family.exported_fields())
    )
    texts = f"\nIn records only:\n\n| field | what it is | from |\n|---|---|---|\n{told}" if told else ""
    return (
        f"## {family.name}\n\n{family.help}\n\n{where}Source: {_cell(family.source)}. {record}{change}\n{series}{texts}"
    )


def _kind(field: Field) -> str:
    one = f"gauge: 1, with the label `{field.name}`"
    return {Kind.FLAG: "gauge: 1 or 0", Kind.STATE: one, Kind.NAME: one}.get(field.kind, field.kind.value)


def _unit(field: Field) -> str:
    return "" if field.kind in (Kind.FLAG, Kind.STATE, Kind.NAME) else _named(field.name)


def _named(name: str) -> str:
    last = name.removesuffix("_total").rpartition("_")[2]
    return _UNITS.get(last, "1")


def _source(field: Field) -> str:
    return f"`{field.path}`" + (f" in {field.unit.value}" if field.unit.value else "")


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


def _own() -> Iterator[str]:
    """Yield the rows of the series that no family has."""
    text = asyncio.run(_shown())
    mine = {family.series(field) for family in FAMILIES for field in family.exported_fields()}
    for name, told in re.findall(r"^# HELP (\S+) (.*)$", text, re.MULTILINE):
        kind = re.search(rf"^# TYPE {name} (\w+)$", text, re.MULTILINE)
        if name not in mine and kind is not None and name.startswith("q"):
            line = re.search(rf"^{name}(?:_bucket|_count|_sum)?{{([^}}]*)}}", text, re.MULTILINE)
            labels = re.findall(r'(\w+)="', line[1]) if line is not None else []
            listed = ", ".join(f"`{label}`" for label in labels if label != "le")
            yield f"| `{name}` | {kind[1]} | {_named(name) if kind[1] != 'histogram' else 'seconds'} | {listed} | {_cell(told)} |\n"


async def _shown() -> str:
    """Return the specimen's series; some of the agent's own are of its loop."""
    app = _specimen()
    return render(app.snapshot) + app.metrics.render().decode()


def _specimen() -> Agent:
    app = Agent(
        Config.model_validate(
            {"monitors": [{"dial": "/run/vm1.qmp"}], "host": "hv7", "kafka": {"bootstrap_servers": ["kafka:9092"]}}
        )
    )
    vm, now = Vm("hv7", "1a8b9e0c-3f52-4a61-9c1d-5b8a7c6d0e21", "vm1", "/run/vm1.qmp"), time.time_ns()
    app.snapshot.limits = SeriesLimits(series_per_vm=1)
    app.observer.on_status(
        MonitorStatus(Monitor("/run/vm1.qmp", (), _never), MonitorState.UP, "", vm, Build("0", "0"), now)
    )
    app.observer.on_samples(vm, (RUNSTATE,), (Sample(RUNSTATE, (), {"running": True}),), now)
    app.observer.on_samples(vm, (ABOUT,), (Sample(ABOUT, (), {"machine": "m", "accelerator": "kvm", "pid": "1"}),), now)
    app.observer.on_samples(
        vm, (BLOCK,), [Sample(BLOCK, (name,), {"reads_total": 1}) for name in ("disk0", "disk1")], now
    )
    app.observer.on_event(
        Record("qemu.event.guest_panicked", vm, {"event": "GUEST_PANICKED", "category": "runstate", "qemu": {}}, now)
    )
    app.observer.on_collector_run("block", PollOutcome.OK)
    app.observer.on_events_dropped(vm, "before_attach", 1)
    app.observer.on_connection_refused("unix:/run/qmp.sock", "user")
    return app


async def _never(*_: Any, **__: Any) -> Any:
    raise AssertionError("a specimen connects to nothing")


def records(examples: Iterable[str]) -> str:
    """Return docs/records.md: every type of record, with an example where the run made one.

    Args:
        examples: records as JSON, one of each type.
    """
    found = {record["type"]: record for record in map(json.loads, examples)}
    version = next(r["data"]["qemu_version"] for r in found.values() if r["type"] == "qemu.vm.attached")
    parts = [_MADE, "# Records\n", _ENVELOPE.format(version=version)]
    parts += [
        "## Changes in a VM's life\n",
        *(_type(f"qemu.vm.{name}", told, found) for name, told in _CHANGES.items()),
    ]
    parts += [
        "## Samples\n",
        *(_type(f.type, f.help, found) for f in FAMILIES if f is not BLOCK_SPACE),
    ]
    parts += [_type(f"qemu.{family.name}", family.help, found) for family in TRANSITIONS]
    parts += [
        "## Alerts\n",
        _type("qemu.alert.write_threshold", "A thin disk went past a level, or is below it again.", found),
    ]
    parts += [
        _type(f"qemu.alert.{rule.alert}", rule.help, found) for rule in {rule.alert: rule for rule in RULES}.values()
    ]
    parts += [
        "## The agent\n",
        _type("qemu.agent.records_dropped", "Records that could not be delivered, counted and told.", found),
    ]
    parts += ["## Events\n", _EVENTS, "".join(map(_event_row, ROWS))]
    parts += [
        _type(f"qemu.event.{row.name.lower()}", row.help, found)
        for row in ROWS
        if f"qemu.event.{row.name.lower()}" in found
    ]
    return "\n".join(parts)


_EVENTS = """`data.qemu` is QEMU's own data, whole. An event that is not in this table is passed through, as category `unknown`.

| type | category | severity | since QEMU | what it says |
|---|---|---|---|---|"""

_CHANGES = {
    "attached": "The agent has met a VM, or met it again.",
    "detached": "The agent leaves a VM that lives on.",
    "gone": "A VM is gone.",
    "migrated_in": "A VM has come here by migration, or was restored from a file: no new VM.",
    "migrated_out": "A VM has left by migration, or was saved to a file, and its process has ended: no dead VM.",
    "busy": "Another client holds a monitor.",
    "stalled": "A VM does not answer in time.",
    "recovered": "A VM that had stalled, or whose monitor was busy, answers again.",
}
assert _CHANGES.keys() == schema.CHANGES.keys()


def _event_row(row: EventRow) -> str:
    severity = row.severity.label if isinstance(row.severity, Severity) else "by its data"
    return (
        f"| `qemu.event.{row.name.lower()}` | {row.category.value} | {severity} | {row.since} | {_cell(row.help)} |\n"
    )


def _type(name: str, told: str, found: Mapping[str, Any]) -> str:
    example = found.get(name)
    shown_ = f"\n```json\n{json.dumps(example, indent=2, ensure_ascii=False)}\n```\n" if example is not None else ""
    return f"### {name}\n\n{told}\n{shown_}"


_QUESTIONS = """All that QEMU 2.6 to 11.1 can be asked by a `query-*`, and what the agent does with it. What is refused cannot be sent,
whatever the config says: requests are made in one file, `agent/qmp/commands.py`, and of these questions only of those that are not
refused here. What a QEMU does not know it is not asked; `qmp-agent check` tells what that is. What is asked after an event is asked at
attach too, and at each resync. Beside these there are `qom-list` and `qom-get`, of balloons, network cards and the machine's type.

| question | what becomes of it | why | after |
|---|---|---|---|
"""


def queries() -> str:
    """Return docs/qmp-commands.md: every question of QMP's, a row each."""
    return "\n".join((_MADE, "# Questions\n", _QUESTIONS + "".join(map(_question, QUERIES))))


def _question(query: Query) -> str:
    after = (
        ", ".join(f"`{event}`" for event in events_of(query.name)) if query.policy is not QueryPolicy.REFUSED else ""
    )
    return f"| `{query.name}` | {query.policy.value} | {_cell(query.reason)} | {after} |\n"


def events_of(command: str) -> list[str]:
    """Return the events after which a question is asked."""
    askers = {c.name for c in ALL if command in (ask.name for ask in c.commands(ALL_FEATURES))}
    if command in (ask.name for ask in host_process.COMMANDS):
        askers.add(THREADS)
    return [row.name for row in ROWS if askers & set(row.invalidates)]


_DOCUMENTS = {
    "metrics": metrics,
    "records": lambda: records(EXAMPLES.read_text("utf-8").splitlines()),
    "queries": queries,
}


def main() -> None:
    """Write one of the documents to standard output."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("document", choices=_DOCUMENTS)
    document = parser.parse_args().document
    logging.disable()  # the specimen's alert is none
    sys.stdout.write(_DOCUMENTS[document]())


if __name__ == "__main__":
    main()
