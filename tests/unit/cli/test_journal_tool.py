"""`qmp-agent journal` shows, exports and requeues what is in a journal: waiting records, dead letters and damaged files."""

import json
from pathlib import Path

import pytest

from agent.cli.journal import (
    JournalToolError,
    describe_journal,
    journal_records_as_json_lines,
    quarantined_files,
    requeue_undelivered_records,
)
from agent.delivery.journal.journal import JOURNAL_FILE
from tests.lab.scripted_sink import RecordSource, ScriptedSink, eventually, is_journaled, make_pipeline, running


async def leave_records(folder: Path, source: RecordSource, waiting: int, rejected: int) -> list[str]:
    """Leave dead letters and waiting records in a journal; return the ids of the dead letters."""
    sink = ScriptedSink()
    records = [*source.take(rejected)]
    dead_letters = [record.id for record in records]
    sink.rejected = set(dead_letters)
    async with running(make_pipeline(sink, folder)) as pipeline:
        for record in records:
            pipeline.put(record)
        await sink.until(lambda: len(sink.drop_reports) == 1)
        sink.up = False
        for record in source.take(waiting):
            pipeline.put(record)
        await eventually(lambda: is_journaled(pipeline.events))
    return dead_letters


def exported_ids(folder: Path, *, file: str | None = None, dead_letters: bool = False) -> list[str]:
    return [
        json.loads(line)["id"] for line in journal_records_as_json_lines(folder, file=file, dead_letters=dead_letters)
    ]


async def test_the_summary_counts_waiting_records_and_dead_letters_by_type(folder: Path) -> None:
    await leave_records(folder, RecordSource(), waiting=7, rejected=2)
    lines = [*describe_journal(folder)]
    (events,) = (line for line in lines if line.startswith("  events:"))
    assert events.startswith("  events: 7 waiting records")
    assert ["7", "qemu.event.stop"] in [line.split() for line in lines]
    assert "  dead letters: 2" in lines
    assert ["2", "qemu.event.stop", "(rejected)"] in [line.split() for line in lines]


async def test_an_export_has_the_waiting_records_or_the_dead_letters(folder: Path) -> None:
    source = RecordSource()
    dead_letters = await leave_records(folder, source, waiting=5, rejected=3)
    assert exported_ids(folder) == source.ids[3:]
    assert exported_ids(folder, dead_letters=True) == dead_letters
    assert exported_ids(folder) == source.ids[3:], "an export removes nothing"


async def test_requeued_dead_letters_are_delivered_by_the_next_run(folder: Path) -> None:
    source = RecordSource()
    dead_letters = await leave_records(folder, source, waiting=4, rejected=3)
    assert requeue_undelivered_records(folder, file=None) == 3
    assert exported_ids(folder, dead_letters=True) == []
    sink = ScriptedSink()
    async with running(make_pipeline(sink, folder)):
        await sink.until(lambda: len(sink.ids) >= 7)
    assert sink.ids == [*source.ids[3:], *dead_letters], "after the records that waited before"


async def test_the_readable_records_of_a_damaged_file_are_exported_and_requeued(folder: Path) -> None:
    source = RecordSource()
    sink = ScriptedSink(up=False)
    async with running(make_pipeline(sink, folder)) as pipeline:
        for record in source.take(50):
            pipeline.put(record)
        await eventually(lambda: is_journaled(pipeline.events))
    (folder / JOURNAL_FILE).rename(folder / f"{JOURNAL_FILE}.damaged-1")
    (quarantined,) = quarantined_files(folder)
    assert exported_ids(folder, file=quarantined.name) == source.ids
    assert requeue_undelivered_records(folder, file=quarantined.name) == 50
    sink = ScriptedSink()
    async with running(make_pipeline(sink, folder)):
        await sink.until(lambda: len(sink.ids) == 50)
    assert sink.ids == source.ids


async def test_a_requeue_is_refused_while_an_agent_uses_the_journal(folder: Path) -> None:
    async with running(make_pipeline(ScriptedSink(), folder)) as pipeline:
        await eventually(lambda: pipeline.unready_reasons() == [])
        with pytest.raises(JournalToolError, match="stop the agent first"):
            requeue_undelivered_records(folder, file=None)


async def test_a_missing_journal_and_an_unknown_file_are_named(folder: Path) -> None:
    with pytest.raises(JournalToolError, match=r"does not exist: no agent has used this journal yet"):
        list(describe_journal(folder))
    for file in ("other.db", "../secret"):
        with pytest.raises(JournalToolError, match=r"is not a quarantined file in .*; quarantined files: none"):
            list(journal_records_as_json_lines(folder, file=file, dead_letters=False))
