"""Random damage of the journal's bytes: the agent starts, delivers only unchanged records, and journals again."""

import json
import random
import shutil
import tempfile
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from hypothesis import example, given, settings
from hypothesis import strategies as st

from agent.cli.journal import quarantined_files
from agent.delivery.journal.database import JournalDatabase
from agent.delivery.journal.journal import JOURNAL_FILE
from agent.delivery.journal.statements import delete_row_range, insert_records
from tests.lab.scripted_sink import (
    EVENT,
    SAMPLE,
    RecordSource,
    ScriptedSink,
    deduplicated,
    eventually,
    is_journaled,
    make_pipeline,
    running,
)

QUEUES = {"events": EVENT, "samples": SAMPLE}


@dataclass(frozen=True, slots=True)
class JournalFiles:
    """A journal's files and their contents.

    Attributes:
        files: the bytes of each file, by suffix.
        bodies: the bodies in each queue, by id, in order.
    """

    files: dict[str, bytes]
    bodies: dict[str, dict[str, bytes]]


@cache
def make_journal(*, closed: bool) -> JournalFiles:
    """Return a journal with freed pages; if not closed, it is as a crash leaves it."""
    draw = random.Random(1)
    bodies: dict[str, dict[str, bytes]] = {queue: {} for queue in QUEUES}
    sources = {queue: RecordSource(kind, size=300, run=1 + run) for run, (queue, kind) in enumerate(QUEUES.items())}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, JOURNAL_FILE)
        database = JournalDatabase(path)
        for group in range(20):
            for queue, source in sources.items():
                source.padding = "x" * draw.choice((1, 200, 900, 6000))  # the last one needs overflow pages
                records = [*source.take(draw.randint(1, 12))]
                bodies[queue] |= {record.id: record.body for record in records}
                database.commit([insert_records(queue, records, [])])
            if group == 8:
                database.commit([delete_row_range(queue, 0, 60) for queue in QUEUES])
                database.checkpoint()
        if closed:
            database.close()
        copy = Path(folder, "copy")
        copy.mkdir()
        for suffix in ("", "-wal", "-shm"):
            if path.with_name(JOURNAL_FILE + suffix).exists():
                shutil.copy(path.with_name(JOURNAL_FILE + suffix), copy / (JOURNAL_FILE + suffix))
        database.close()
        return JournalFiles(
            {file.name.removeprefix(JOURNAL_FILE): file.read_bytes() for file in copy.iterdir()}, bodies
        )


@dataclass(frozen=True, slots=True)
class Damage:
    """Damage of one file.

    Attributes:
        suffix: the file's suffix.
        at: where the damage starts, as a fraction of the file's length.
        length: bytes of damage.
        what: `cut`, `zero`, `noise` or `flip`.
        seed: seed of the random bytes.
    """

    suffix: str
    at: float
    length: int
    what: str
    seed: int

    def apply(self, files: dict[str, bytes]) -> None:
        data = bytearray(files.get(self.suffix, b""))
        if not data:
            return
        draw = random.Random(self.seed)
        at = min(int(self.at * len(data)), len(data) - 1)
        to = min(at + self.length, len(data))
        match self.what:
            case "cut":
                del data[at:]
            case "zero":
                data[at:to] = bytes(to - at)
            case "noise":
                data[at:to] = draw.randbytes(to - at)
            case "flip":
                for _ in range(draw.randint(1, 4)):
                    data[draw.randrange(at, to)] ^= 1 << draw.randrange(8)
        files[self.suffix] = bytes(data)


def damage_lists(*suffixes: str) -> st.SearchStrategy[list[Damage]]:
    """Return a strategy of damage_lists: anywhere in the files, and often in the first pages, which have the structure."""
    at = st.one_of(st.floats(0, 1, exclude_max=True), st.floats(0, 0.05))
    length = st.sampled_from((1, 8, 100, 512, 4096, 20_000))
    damage = st.builds(
        Damage,
        st.sampled_from(suffixes),
        at,
        length,
        st.sampled_from(("cut", "zero", "noise", "flip")),
        st.integers(0, 99),
    )
    return st.lists(damage, min_size=1, max_size=3)


async def check_guarantees(before: JournalFiles, damaged: list[Damage]) -> None:
    """Start delivery with a damaged journal, and check the delivery guarantees.

    Args:
        before: the journal before the damage.
        damaged: the damage.
    """
    files = dict(before.files)
    for damage in damaged:
        damage.apply(files)
    with tempfile.TemporaryDirectory(prefix="qmp-") as path:
        folder = Path(path)
        for suffix, data in files.items():
            (folder / (JOURNAL_FILE + suffix)).write_bytes(data)
        sink, event, sample = ScriptedSink(), RecordSource(run=8), RecordSource(SAMPLE, run=9)
        async with running(make_pipeline(sink, folder)) as pipeline:
            pipeline.put(event.next())
            pipeline.put(sample.next())
            await sink.until(lambda: {*event.ids, *sample.ids} <= set(sink.ids))
            await eventually(lambda: pipeline.unready_reasons() == [])
            sink.up = False
            pipeline.put(event.next())
            await eventually(lambda: is_journaled(pipeline.events))
            sink.up = True
            await sink.until(lambda: event.ids[-1] in sink.ids)
        assert pipeline.journal is not None
        assert len(quarantined_files(folder)) == pipeline.journal.quarantined_files
    delivered = {record.id: record.body for record in sink.records if record not in sink.drop_reports}
    for bodies in (*before.bodies.values(), event.bodies, sample.bodies):
        ours = [record_id for record_id in deduplicated(sink.ids) if record_id in bodies]
        assert ours == sorted(ours, key=list(bodies).index), "order is kept"
        assert all(delivered.pop(record_id) == bodies[record_id] for record_id in ours), "no body is changed"
    assert delivered == {}, "nothing else is delivered"
    for record in sink.drop_reports:
        assert json.loads(record.body)["data"]["records"] > 0


@settings(max_examples=120, deadline=None)
@example([Damage("", 0.0053991136509337415, 1, "zero", 0)])  # SQLite returns one row twice
@given(damage_lists(""))
async def test_a_closed_journal_may_be_damaged_anywhere(damaged: list[Damage]) -> None:
    await check_guarantees(make_journal(closed=True), damaged)


@settings(max_examples=120, deadline=None)
@given(damage_lists("", "-wal", "-shm"))
async def test_a_crashed_journal_may_be_damaged_anywhere(damaged: list[Damage]) -> None:
    await check_guarantees(make_journal(closed=False), damaged)


async def test_an_intact_journal_is_delivered_completely() -> None:
    for closed in (True, False):
        before = make_journal(closed=closed)
        await check_guarantees(before, [])
