"""Generator of metrics.md, records.md and qmp-commands.md in docs/reference from the agent's tables and from records of a real run.

`python -m tools.reference metrics|records|queries` writes one document to standard output.

The series about sessions and about the agent itself are in no table. So the generator creates an agent, reports one observation of each
type to it, and scrapes these series.
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

from agent.alerts.catalogue import ALERT_CATALOGUE
from agent.alerts.pool_alerts import POOL_ALERT_TEXTS
from agent.alerts.store import CUSTOM_TYPE
from agent.app.agent import Agent
from agent.collectors import ALL_COLLECTORS, FACTS_WITH_ALL_FEATURES
from agent.config.model import Config
from agent.exposition.prometheus import render_metrics
from agent.exposition.series_limits import SeriesLimits
from agent.model.agent_lifecycle_records import AGENT_LIFECYCLE
from agent.model.event_definition import EventDefinition
from agent.model.event_table import EVENT_DEFINITIONS
from agent.model.family import Family, Field, FieldKind, Sample
from agent.model.metrics import FAMILIES, TRANSITION_FAMILIES
from agent.model.metrics.block import BLOCK, BLOCK_SPACE
from agent.model.metrics.identity import IDENTITY
from agent.model.metrics.runstate import RUNSTATE
from agent.model.record import Record, Severity, Vm
from agent.model.state_topic_records import STATES
from agent.monitors import Monitor
from agent.qmp.queries import QUERIES, Query, QueryTrigger
from agent.schemas.data import LIFECYCLE_CHANGES
from agent.session import host_process
from agent.session.identity_and_features import QemuBuild
from agent.session.session import DISCOVER_PROCESS
from agent.session.shared_types import MonitorState, MonitorStatus, PollOutcome

EXAMPLES = Path(__file__).parents[1] / "tests/golden/records.jsonl"
"""One record of each type from a real run; `make examples` writes the file."""

_GENERATED_NOTE = "<!-- Generated from the code by `make generate`; a test fails if it is out of date. -->\n"

_UNITS = {"bytes": "bytes", "seconds": "seconds", "ratio": "ratio", "second": "per second"}

_METRICS_INTRO = """Every series of a VM has the labels `vm_uuid` and `vm`, in addition to the labels that are listed below.
`qemu_vm_info` has all other labels of a VM. Join with it on `instance`, too, because two hosts report the same VM during a migration:

    rate(qemu_block_write_bytes_total[5m]) * on (job, instance, vm_uuid) group_left (machine, pid) qemu_vm_info

A series exists only if QEMU or the host provides the value.
Fields without a series are in [records](records.md).
"""

_AGENT_SERIES_INTRO = """## Sessions and the agent itself

The agent's own observations.

| series | type | unit | labels | description |
|---|---|---|---|---|
"""

_RECORDS_INTRO = """Every record is a [CloudEvents 1.0](https://cloudevents.io/) event in JSON structured mode;
`config/record.schema.json` is its JSON schema.

- `id` is unique: deduplicate on it.
- `partitionkey` is the Kafka key. It is the VM's UUID, which keeps a VM's records in order.
- `sequence` orders the records of a `source`, as text, over restarts of the agent. It has no gaps within a run.
- `previoussequence` is the `sequence` of the previous record of the same source in the same topic. If a consumer of the topic has not
  received that record, the record is lost or still on its way. It may be a record of an earlier run of the agent. It is absent if the
  agent does not know the previous record, for example after a kill, and in states: [guarantees](../explanation/guarantees.md).
- `time` is when it happened, `recordedtime` when the agent made the record, to the millisecond. `recordedtime` is absent if the two are
  less than 100 ms apart.
- `severitytext` and `severitynumber` are OpenTelemetry's severities: DEBUG 5, INFO 9, WARN 13, ERROR 17, FATAL 21.
- `sampledrate` is the number of events that the record represents; it is absent for a single event.
- `causationid` is the `id` of the record of the event, sample or change of a VM that led to this record. It is absent where no single
  record did: in alerts that depend on time, on the config or on a start of the agent, and in those from a sample whose record was not
  sent because its values had not changed.
- In Kafka, the header `ce_type` repeats the type, so consumers can filter without parsing the value. `kafka.headers` adds others.
  With `kafka.content_mode: binary`, the value is `data` alone, and headers have all attributes.
- `datacontenttype` is absent, as `application/json` is the default of the JSON format.
- No attribute joins the records of a migration on its two hosts: QMP gives both ends nothing in common but the VM's UUID. Join
  `qemu.vm.migrated_out` and `qemu.vm.migrated_in` by `vmuuid`.
- `dataschema` names the JSON schema of `data` and its version; `config/schemas/` has a file for each. A version stays as long as
  consumers of it can read all records: new fields may come, so ignore fields that you do not know.
- `data` is flat. Its fields have the names and units of the [metrics](metrics.md).

The examples are from a real run with QEMU {version}.
"""


def metrics_document() -> str:
    """Return the text of docs/reference/metrics.md, with a row for each series."""
    return "\n".join(
        (
            _GENERATED_NOTE,
            "# Metrics\n",
            _METRICS_INTRO,
            *map(_family_section, FAMILIES),
            _AGENT_SERIES_INTRO + "".join(_agent_series_rows()),
        )
    )


def _family_section(family: Family) -> str:
    labels = "".join(f"`{name}`, " for name in family.labels).removesuffix(", ")
    where = f"Label{'s' if len(family.labels) > 1 else ''} {labels}. " if labels else ""
    where += "Without the labels of a VM. " if family.per_host else ""
    record = "No separate record: alerts contain it." if family is BLOCK_SPACE else f"Record `{family.type}`."
    change = " Emitted only after a change." if family.on_change else ""
    rows = "".join(
        f"| `{family.metric_name(field)}` | {_type_cell(field)} | {_unit_cell(field)} | {_escape_cell(field.help)} | "
        f"{_source_cell(field)} |\n"
        for field in family.exported_fields()
    )
    series = f"\n| series | type | unit | description | field |\n|---|---|---|---|---|\n{rows}" if rows else ""
    record_only = "".join(
        f"| `{field.name}` | {_escape_cell(field.help)} | {_source_cell(field)} |\n"
        for field in family.fields
        if field not in set(family.exported_fields())
    )
    texts = (
        f"\nIn records only:\n\n| field | description | source |\n|---|---|---|\n{record_only}" if record_only else ""
    )
    return f"## {family.name}\n\n{family.help}\n\n{where}Source: {_escape_cell(family.source)}. {record}{change}\n{series}{texts}"


def _type_cell(field: Field) -> str:
    labeled = f"gauge: 1, with the label `{field.name}`"
    return {FieldKind.FLAG: "gauge: 1 or 0", FieldKind.STATE: labeled, FieldKind.NAME: labeled}.get(
        field.kind, field.kind.value
    )


def _unit_cell(field: Field) -> str:
    return "" if field.kind in (FieldKind.FLAG, FieldKind.STATE, FieldKind.NAME) else _unit_of_series(field.name)


def _unit_of_series(name: str) -> str:
    return _UNITS.get(name.removesuffix("_total").rpartition("_")[2], "1")


def _source_cell(field: Field) -> str:
    return f"`{field.path}`" + (f" in {field.unit.value}" if field.unit.value else "")


def _escape_cell(text: str) -> str:
    return text.replace("|", "\\|")


def _agent_series_rows() -> Iterator[str]:
    """Yield the rows of the series that belong to no family, from a scrape."""
    text = asyncio.run(_scrape_sample_agent())
    of_families = {family.metric_name(field) for family in FAMILIES for field in family.exported_fields()}
    for name, help_text in re.findall(r"^# HELP (\S+) (.*)$", text, re.MULTILINE):
        kind = re.search(rf"^# TYPE {name} (\w+)$", text, re.MULTILINE)
        if name not in of_families and kind is not None and name.startswith("q"):
            line = re.search(rf"^{name}(?:_bucket|_count|_sum)?{{([^}}]*)}}", text, re.MULTILINE)
            labels = re.findall(r'(\w+)="', line[1]) if line is not None else []
            listed = ", ".join(f"`{label}`" for label in labels if label != "le")
            unit = _unit_of_series(name) if kind[1] != "histogram" else "seconds"
            yield f"| `{name}` | {kind[1]} | {unit} | {listed} | {_escape_cell(help_text)} |\n"


async def _scrape_sample_agent() -> str:
    """Return a scrape of the sample agent. This is a coroutine, because some series need a running event loop."""
    app = _make_sample_agent()
    return render_metrics(app.snapshot) + app.metrics.render().decode()


def _make_sample_agent() -> Agent:
    app = Agent(
        Config.model_validate(
            {
                "monitors": [{"dial": "/run/vm1.qmp"}],
                "host": "hv7",
                "kafka": {"bootstrap_servers": ["kafka:9092"]},
                "allow": {"latency_histograms": True},
            }
        )
    )
    vm, now = Vm("hv7", "1a8b9e0c-3f52-4a61-9c1d-5b8a7c6d0e21", "vm1", "/run/vm1.qmp"), time.time_ns()
    app.snapshot.limits = SeriesLimits(series_per_vm=1)
    app.observer.on_monitor_status(
        MonitorStatus(
            Monitor("/run/vm1.qmp", (), _refuse_connection),
            MonitorState.UP,
            "",
            vm,
            QemuBuild("0", "0"),
            now,
            (("nodes", "not JSON"),),
        )
    )
    app.observer.on_samples(vm, (RUNSTATE,), (Sample(RUNSTATE, (), {"running": True}),), now)
    app.observer.on_samples(
        vm, (IDENTITY,), (Sample(IDENTITY, (), {"machine": "m", "accelerator": "kvm", "pid": "1"}),), now
    )
    app.observer.on_samples(
        vm, (BLOCK,), [Sample(BLOCK, (name,), {"reads_total": 1}) for name in ("disk0", "disk1")], now
    )
    app.observer.on_event(
        Record("qemu.event.guest_panicked", vm, {"event": "GUEST_PANICKED", "category": "runstate", "qemu": {}}, now)
    )
    app.observer.on_collector_run("block", PollOutcome.OK)
    app.observer.on_events_dropped(vm, "before_attach", 1)
    app.observer.on_messages_skipped(vm, "unreadable", 1)
    app.observer.on_agent_refused_incoming_connection("unix:/run/qmp.sock", "user")
    return app


async def _refuse_connection(*_: Any, **__: Any) -> Any:
    raise AssertionError("the sample agent must not connect to a monitor")


def records_document(examples: Iterable[str]) -> str:
    """Return the text of docs/reference/records.md, with a section for each type of record.

    Args:
        examples: an example record of each type, as JSON. A type without an example gets a section without one.
    """
    by_type = {record["type"]: record for record in map(json.loads, examples)}
    version = next(r["data"]["qemu_version"] for r in by_type.values() if r["type"] == "qemu.vm.attached")
    parts = [_GENERATED_NOTE, "# Records\n", _RECORDS_INTRO.format(version=version)]
    parts += [
        "## Lifecycle of a VM\n",
        *(_record_type_section(f"qemu.vm.{name}", text, by_type) for name, text in _LIFECYCLE_TEXTS.items()),
    ]
    parts += [
        "## Samples\n",
        *(_record_type_section(f.type, f.help, by_type) for f in FAMILIES if f is not BLOCK_SPACE),
    ]
    parts += [_record_type_section(f"qemu.{family.name}", family.help, by_type) for family in TRANSITION_FAMILIES]
    parts += [
        "## Alerts\n",
        _record_type_section(
            "qemu.alert.write_threshold", "A thin disk exceeded an alert level, or is below it again.", by_type
        ),
    ]
    texts = {name: info.help for name, info in ALERT_CATALOGUE.items() if name != "write_threshold"} | POOL_ALERT_TEXTS
    texts[CUSTOM_TYPE] = "An alert of the operator's own, from `alerts.custom` in the config. `alert` has its name."
    parts += [_record_type_section(f"qemu.alert.{alert}", text, by_type) for alert, text in texts.items()]
    parts += [
        "## The agent\n",
        *(_record_type_section(f"qemu.{family.name}", family.help, by_type) for family in AGENT_LIFECYCLE),
        _record_type_section(
            "qemu.agent.records_dropped", "Number of records that could not be delivered, by reason.", by_type
        ),
    ]
    parts += [
        "## States\n",
        _STATES_INTRO,
        *(_record_type_section(f"qemu.{family.name}", family.help, by_type) for family in STATES),
    ]
    parts += ["## Events\n", _EVENTS_INTRO, "".join(map(_event_row, EVENT_DEFINITIONS))]
    parts += [
        _record_type_section(f"qemu.event.{row.name.lower()}", row.help, by_type)
        for row in EVENT_DEFINITIONS
        if f"qemu.event.{row.name.lower()}" in by_type
    ]
    return "\n".join(parts)


_STATES_INTRO = """The topic `qemu.state` is compacted: Kafka keeps the last record of each key, `partitionkey`. A record without a value
deletes its key. `source` and the key are `/hosts/<host>/state/vms/<uuid>`, `/hosts/<host>/state/alerts/<fingerprint>` or
`/hosts/<host>/state`. A consumer that reads the topic from its beginning knows the present state of all hosts.
"""

_EVENTS_INTRO = """`data.qemu` is QEMU's own data, complete. An event that is not in this table is passed through with category `unknown`.

| type | category | severity | since QEMU | description |
|---|---|---|---|---|"""

_LIFECYCLE_TEXTS = {
    "attached": "The agent attached to a VM for the first time, or again after it was detached.",
    "detached": "The agent detached from a VM that keeps running.",
    "gone": "A VM ended.",
    "migrated_in": "A VM arrived by migration or was restored from a file; it is not a new VM.",
    "migrated_out": "A VM left by migration or was saved to a file, and its process ended; it did not fail.",
    "busy": "Another client holds the monitor.",
    "stalled": "A VM does not respond in time.",
    "recovered": "A VM that was stalled, or whose monitor was busy, responds again.",
}
assert _LIFECYCLE_TEXTS.keys() == LIFECYCLE_CHANGES.keys()


def _event_row(row: EventDefinition) -> str:
    severity = row.severity.label if isinstance(row.severity, Severity) else "depends on its data"
    return f"| `qemu.event.{row.name.lower()}` | {row.category.value} | {severity} | {row.since} | {_escape_cell(row.help)} |\n"


def _record_type_section(name: str, text: str, by_type: Mapping[str, Any]) -> str:
    example = by_type.get(name)
    block = f"\n```json\n{json.dumps(example, indent=2, ensure_ascii=False)}\n```\n" if example is not None else ""
    return f"### {name}\n\n{text}\n{block}"


_QUERIES_INTRO = """This table lists every `query-*` command of QEMU 2.6 to 11.1, when the agent sends it, and why.
`(until 5.2)` means that newer QEMUs do not have the command.

- `never`: the agent cannot send the command, whatever the config says. Only `agent/qmp/commands.py` encodes requests, and it refuses
  these.
- `after an event`: also at attach and at each resync. The last column lists the events.
- `at attach`: also at each resync.
- `while stalled`: out of band, after a reply is overdue.

The agent does not send commands that a QEMU does not support; `qmp-agent check` lists them.
It also sends `qom-list` and `qom-get`, for balloons, network devices, serial ports and the machine type.

| command | sent | reason | events |
|---|---|---|---|
"""


_OMITTED_INTRO = """## Omitted fields

Records omit these fields of the replies.

| command | fields | reason |
|---|---|---|
"""

_OMITTED = (
    ("query-pci", "`irq`, `irq_pin`, `regions`", "The guest's firmware assigns them, so they change at each boot."),
    (
        "query-spice",
        "`connection-id`, `channel-id`, `family`",
        "Numbers that have a meaning only within one connection.",
    ),
    ("query-vnc-servers", "`family`", "The address shows it."),
    (
        "query-named-block-nodes",
        "`vm-clock-*`, `icount`, `date-nsec` of snapshots",
        "QEMU needs them only to load a snapshot.",
    ),
    (
        "query-named-block-nodes",
        "`uuid`, `payload-offset`, `master-key-iters`, `key-offset`, `iters`, `stripes` of LUKS",
        "The layout of the image, for the tools that repair it.",
    ),
    ("query-named-block-nodes", "limits of throttling", "query-block has them, and only the device's limits apply."),
    ("query-blockstats", "counters of `parent` and `backing`", "QEMU does not count there; they are always 0."),
)
"""Command, fields and reason of each field that no record contains."""


def queries_document() -> str:
    """Return the text of docs/reference/qmp-commands.md, with a row for each query."""
    rows, omitted = "".join(map(_query_row, QUERIES)), "".join(f"| `{c}` | {f} | {r} |\n" for c, f, r in _OMITTED)
    return "\n".join((_GENERATED_NOTE, "# QMP commands\n", _QUERIES_INTRO + rows, _OMITTED_INTRO + omitted))


def _query_row(query: Query) -> str:
    after = (
        ", ".join(f"`{event}`" for event in events_of(query.name)) if query.trigger is not QueryTrigger.REFUSED else ""
    )
    return f"| `{query.name}` | {query.trigger.value} | {_escape_cell(query.reason)} | {after} |\n"


def events_of(command: str) -> list[str]:
    """Return the names of the events after which the agent sends a command."""
    senders = {c.name for c in ALL_COLLECTORS if command in (sent.name for sent in c.commands(FACTS_WITH_ALL_FEATURES))}
    if command in (sent.name for sent in host_process.PROCESS_COMMANDS):
        senders.add(DISCOVER_PROCESS)
    return [row.name for row in EVENT_DEFINITIONS if senders & set(row.invalidates)]


_DOCUMENTS = {
    "metrics": metrics_document,
    "records": lambda: records_document(EXAMPLES.read_text("utf-8").splitlines()),
    "queries": queries_document,
}


def main() -> None:
    """Write one document to standard output."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("document", choices=_DOCUMENTS)
    document = parser.parse_args().document
    logging.disable()  # the sample agent would log an alert that is not real
    sys.stdout.write(_DOCUMENTS[document]())


if __name__ == "__main__":
    main()
