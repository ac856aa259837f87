"""Records as JSON lines: whole lines, files that turn over with nothing lost, a disk that is full."""

import asyncio
import json
import os
import sys
import threading
from collections.abc import Sequence
from pathlib import Path

import pytest

from agent.delivery.sinks.base import SinkError
from agent.delivery.sinks.jsonl import JsonLinesSink
from agent.model.record import EncodedRecord
from tests.lab.faulty_disk import tmpfs
from tests.lab.scripted_sink import RecordSource, eventually, make_pipeline, running
from tests.unit.delivery.test_journal_full import fill


def batch(source: RecordSource, count: int) -> list[EncodedRecord]:
    return [*source.take(count)]


def ids(*paths: Path) -> list[str]:
    """Return the ids of the records in files, each of which has only whole lines."""
    lines = [line for path in paths for line in path.read_bytes().split(b"\n")[:-1]]
    assert all(path.read_bytes().endswith(b"\n") for path in paths)
    return [json.loads(line)["id"] for line in lines]


def rotated(path: Path) -> list[Path]:
    """Return the files, oldest first."""
    older = sorted(path.parent.glob(f"{path.name}.*"), key=lambda file: int(file.suffix[1:]), reverse=True)
    return [*older, path]


def descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))  # noqa: PTH208 - counted, not opened


async def sent(sink: JsonLinesSink, records: Sequence[EncodedRecord]) -> None:
    assert list(await sink.send(records)) == []


async def test_each_record_is_a_line(folder: Path) -> None:
    source, sink = RecordSource(), JsonLinesSink(folder / "records.jsonl")
    await sink.open()
    await sent(sink, batch(source, 3))
    await sent(sink, batch(source, 2))
    await sink.close()
    assert ids(folder / "records.jsonl") == source.ids
    assert (folder / "records.jsonl").stat().st_mode & 0o777 == 0o640


async def test_a_line_that_was_torn_by_a_kill_is_ended_before_the_next(folder: Path) -> None:
    path = folder / "records.jsonl"
    path.write_bytes(b'{"id":"a"}\n{"id":"torn')
    source, sink = RecordSource(), JsonLinesSink(path)
    await sink.open()
    await sent(sink, batch(source, 1))
    await sink.close()
    first, torn, last = path.read_bytes().splitlines()
    assert (first, torn) == (b'{"id":"a"}', b'{"id":"torn')
    assert json.loads(last)["id"] == source.ids[0]


async def test_a_file_that_ends_with_a_whole_line_is_gone_on_with(folder: Path) -> None:
    path = folder / "records.jsonl"
    path.write_bytes(b'{"id":"a"}\n')
    sink = JsonLinesSink(path)
    for _ in range(3):
        await sink.open()
        await sink.close()
    assert path.read_bytes() == b'{"id":"a"}\n'


@pytest.mark.parametrize("max_files", [1, 5])
async def test_files_turn_over_and_of_those_that_are_kept_none_lacks_a_record(folder: Path, max_files: int) -> None:
    path, source = folder / "records.jsonl", RecordSource(size=200)
    sink = JsonLinesSink(path, rotate_bytes=20_000, max_files=max_files)
    await sink.open()
    for _ in range(40):
        await sent(sink, batch(source, 10))
    await sink.close()
    files = rotated(path)
    assert len(files) == max_files + 1
    came = ids(*files)
    assert came == source.ids[-len(came) :]
    assert all(20_000 <= file.stat().st_size < 30_000 for file in files[:-1])


async def test_of_batches_that_come_side_by_side_one_alone_turns_the_file_over(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    look, another = os.fstat, threading.Barrier(2)

    def slowly(descriptor: int) -> os.stat_result:
        found = look(descriptor)
        try:
            another.wait(0.05)  # until another thread looks too, which is what may not be
        except threading.BrokenBarrierError:
            another.reset()
        return found

    path, source = folder / "records", RecordSource()
    sink = JsonLinesSink(path, rotate_bytes=1000, max_files=100)
    await sink.open()
    monkeypatch.setattr(os, "fstat", slowly)
    for _ in range(3):
        await asyncio.gather(*(sent(sink, batch(source, 4)) for _ in range(3)))
    await sink.close()
    assert all(aside.stat().st_size >= 1000 for aside in rotated(path)[:-1])
    assert sorted(ids(*rotated(path))) == sorted(source.ids)


async def test_where_none_is_kept_the_file_is_begun_anew(folder: Path) -> None:
    path, source = folder / "records.jsonl", RecordSource(size=200)
    sink = JsonLinesSink(path, rotate_bytes=20_000, max_files=0)
    await sink.open()
    for _ in range(40):
        await sent(sink, batch(source, 10))
    await sink.close()
    assert rotated(path) == [path]
    assert path.stat().st_size < 30_000
    assert ids(path)[-1] == source.ids[-1]


async def test_a_file_that_cannot_turn_over_has_no_record_twice(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, source = folder / "records.jsonl", RecordSource(size=200)
    sink = JsonLinesSink(path, rotate_bytes=1000, max_files=2)
    await sink.open()
    await sent(sink, batch(source, 5))

    def refuse(self: Path, target: Path) -> Path:
        raise PermissionError(13, "Permission denied", str(self), str(target))

    records = batch(source, 5)
    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", refuse)
        for _ in range(3):
            with pytest.raises(SinkError, match=r"records\.jsonl.*Permission denied"):
                await sink.send(records)
            await sink.close()
            await sink.open()
    await sent(sink, records)
    await sink.close()
    assert ids(*rotated(path)) == source.ids


async def test_no_descriptor_is_left_when_opening_fails_or_turning_over_does(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = folder / "records.jsonl"
    path.write_bytes(b"torn")
    sink = JsonLinesSink(path, rotate_bytes=5)
    await asyncio.to_thread(descriptors)  # has the thread
    before = descriptors()

    def full(*_: object) -> int:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "write", full)
        for _ in range(5):
            with pytest.raises(SinkError, match="No space left"):
                await sink.open()
    assert descriptors() == before
    await sink.open()
    open_sink = os.open

    def gone(name: object, *rest: int) -> int:
        if name == path:
            raise OSError(13, "Permission denied")
        return open_sink(str(name), *rest)

    with monkeypatch.context() as patch:
        patch.setattr(os, "open", gone)
        with pytest.raises(SinkError):
            await sink.send(batch(RecordSource(), 1))
        await sink.close()
    assert descriptors() == before


async def test_a_full_device_is_said_to_be_one() -> None:
    sink = JsonLinesSink(Path("/dev/full"))
    await sink.open()
    with pytest.raises(SinkError, match=r"^/dev/full: No space left on device$"):
        await sink.send(batch(RecordSource(), 1))
    await sink.close()


async def test_a_folder_that_is_not_there_is_named(folder: Path) -> None:
    with pytest.raises(SinkError, match=r"none/r\.jsonl: No such file or directory$"):
        await JsonLinesSink(folder / "none" / "r.jsonl").open()


async def test_what_a_full_disk_did_not_take_is_delivered_when_there_is_room(folder: Path) -> None:
    with tmpfs(folder / "disk", "size=256k"):
        path, source = folder / "disk" / "records.jsonl", RecordSource()
        filler = fill(folder / "disk")
        pipeline = make_pipeline(JsonLinesSink(path), None)
        async with running(pipeline):
            for record in source.take(100):
                pipeline.put(record)
            await eventually(lambda: any("No space left" in trouble for trouble in pipeline.unready_reasons()))
            filler.unlink()
            await eventually(lambda: pipeline.unready_reasons() == [])
        assert ids(path) == source.ids


async def test_standard_output_is_left_open(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with (folder / "out").open("w") as file, monkeypatch.context() as patch:
        patch.setattr(sys, "stdout", file)
        source, sink = RecordSource(), JsonLinesSink(None, rotate_bytes=10)
        await sink.open()
        await sent(sink, batch(source, 3))
        await sink.close()
        os.fstat(file.fileno())
    assert sink.name == "standard output"
    assert ids(folder / "out") == source.ids


async def test_a_reader_of_standard_output_that_left_is_said_so(monkeypatch: pytest.MonkeyPatch) -> None:
    reader, writer = os.pipe()
    with os.fdopen(writer, "w") as out, monkeypatch.context() as patch:
        patch.setattr(sys, "stdout", out)
        sink = JsonLinesSink(None)
        await sink.open()
        os.close(reader)
        with pytest.raises(SinkError, match=r"^standard output: Broken pipe$"):
            await sink.send(batch(RecordSource(), 1))
        await sink.close()
