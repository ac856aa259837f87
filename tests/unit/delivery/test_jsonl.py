"""The JSON lines sink: whole lines, rotation without lost records, and full disks."""

import asyncio
import contextlib
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
from tests.lab.faulty_disk import resize, tmpfs
from tests.lab.scripted_sink import RecordSource, eventually, make_pipeline, running
from tests.unit.delivery.test_journal_full import fill_disk


def read_ids(*paths: Path) -> list[str]:
    """Return the ids of the records in files, and check that the files have only whole lines."""
    lines = [line for path in paths for line in path.read_bytes().split(b"\n")[:-1]]
    assert all(path.read_bytes().endswith(b"\n") for path in paths)
    return [json.loads(line)["id"] for line in lines]


def rotated_files(path: Path) -> list[Path]:
    """Return the rotated files files and the current one, oldest first."""
    older = sorted(path.parent.glob(f"{path.name}.*"), key=lambda file: int(file.suffix[1:]), reverse=True)
    return [*older, path]


def count_descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))  # noqa: PTH208 - counted, not opened


async def send(sink: JsonLinesSink, records: Sequence[EncodedRecord]) -> None:
    assert list(await sink.send(records)) == []


async def test_each_record_is_one_line(folder: Path) -> None:
    source, sink = RecordSource(), JsonLinesSink(folder / "records.jsonl")
    await sink.open()
    await send(sink, [*source.take(3)])
    await send(sink, [*source.take(2)])
    await sink.close()
    assert read_ids(folder / "records.jsonl") == source.ids
    assert (folder / "records.jsonl").stat().st_mode & 0o777 == 0o640


async def test_opening_removes_a_line_that_a_kill_left_incomplete(folder: Path) -> None:
    path = folder / "records.jsonl"
    path.write_bytes(b'{"id":"a"}\n{"id":"torn')
    source, sink = RecordSource(), JsonLinesSink(path)
    await sink.open()
    await send(sink, [*source.take(1)])
    await sink.close()
    assert read_ids(path) == ["a", *source.ids]


@pytest.mark.parametrize(
    ("left", "repaired"),
    [
        (b'{"id":"a"}\n{"id":"to', b'{"id":"a"}\n'),
        (b'{"id":"to', b""),
        (b'{"id":"a"}\n{"id":"' + b"x" * 200_000, b'{"id":"a"}\n'),
        (b'{"id":"a"}\n{"id":"b"}', b'{"id":"a"}\n{"id":"b"}\n'),
        (b'{"id":"a"}\nof another program', b'{"id":"a"}\nof another program\n'),
        (b"x" * 200_000, b"x" * 200_000 + b"\n"),
        (b"", b""),
    ],
    ids=["torn", "only a torn line", "long", "whole without its end", "foreign", "foreign file", "empty"],
)
async def test_opening_repairs_the_last_line(folder: Path, left: bytes, repaired: bytes) -> None:
    path = folder / "records.jsonl"
    path.write_bytes(left)
    for _ in range(2):
        sink = JsonLinesSink(path)
        await sink.open()
        await sink.close()
        assert path.read_bytes() == repaired


async def test_opening_a_file_of_whole_lines_changes_nothing(folder: Path) -> None:
    path = folder / "records.jsonl"
    path.write_bytes(b'{"id":"a"}\n')
    sink = JsonLinesSink(path)
    for _ in range(3):
        await sink.open()
        await sink.close()
    assert path.read_bytes() == b'{"id":"a"}\n'


@pytest.mark.parametrize("max_files", [1, 5])
async def test_rotated_files_have_every_record(folder: Path, max_files: int) -> None:
    path, source = folder / "records.jsonl", RecordSource(size=200)
    sink = JsonLinesSink(path, rotate_bytes=20_000, max_files=max_files)
    await sink.open()
    for _ in range(40):
        await send(sink, [*source.take(10)])
    await sink.close()
    files = rotated_files(path)
    assert len(files) == max_files + 1
    delivered = read_ids(*files)
    assert delivered == source.ids[-len(delivered) :]
    assert all(20_000 <= file.stat().st_size < 30_000 for file in files[:-1])


async def test_concurrent_batches_rotate_the_file_once(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fstat, other_thread = os.fstat, threading.Barrier(2)

    def slow_fstat(descriptor: int) -> os.stat_result:
        status = fstat(descriptor)
        try:
            other_thread.wait(0.05)  # waits for another thread, which must not come
        except threading.BrokenBarrierError:
            other_thread.reset()
        return status

    path, source = folder / "records", RecordSource()
    sink = JsonLinesSink(path, rotate_bytes=1000, max_files=100)
    await sink.open()
    monkeypatch.setattr(os, "fstat", slow_fstat)
    for _ in range(3):
        await asyncio.gather(*(send(sink, [*source.take(4)]) for _ in range(3)))
    await sink.close()
    assert all(file.stat().st_size >= 1000 for file in rotated_files(path)[:-1])
    assert sorted(read_ids(*rotated_files(path))) == sorted(source.ids)


async def test_without_rotated_files_the_file_is_replaced(folder: Path) -> None:
    path, source = folder / "records.jsonl", RecordSource(size=200)
    sink = JsonLinesSink(path, rotate_bytes=20_000, max_files=0)
    await sink.open()
    for _ in range(40):
        await send(sink, [*source.take(10)])
    await sink.close()
    assert rotated_files(path) == [path]
    assert path.stat().st_size < 30_000
    assert read_ids(path)[-1] == source.ids[-1]


async def test_a_failed_rotation_writes_no_record_twice(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, source = folder / "records.jsonl", RecordSource(size=200)
    sink = JsonLinesSink(path, rotate_bytes=1000, max_files=2)
    await sink.open()
    await send(sink, [*source.take(5)])

    def refuse(self: Path, target: Path) -> Path:
        raise PermissionError(13, "Permission denied", str(self), str(target))

    records = [*source.take(5)]
    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", refuse)
        for _ in range(3):
            with pytest.raises(SinkError, match=r"records\.jsonl.*Permission denied"):
                await sink.send(records)
            await sink.close()
            await sink.open()
    await send(sink, records)
    await sink.close()
    assert read_ids(*rotated_files(path)) == source.ids


async def test_failed_opens_and_rotations_leak_no_file_descriptor(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = folder / "records.jsonl"
    path.write_bytes(b"torn")
    sink = JsonLinesSink(path, rotate_bytes=5)
    await asyncio.to_thread(count_descriptors)  # starts the thread
    before = count_descriptors()

    def full(*_: object) -> int:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "write", full)
        for _ in range(5):
            with pytest.raises(SinkError, match="No space left"):
                await sink.open()
    assert count_descriptors() == before
    await sink.open()
    open_sink = os.open

    def denied(name: object, *rest: int) -> int:
        if name == path:
            raise OSError(13, "Permission denied")
        return open_sink(str(name), *rest)

    with monkeypatch.context() as patch:
        patch.setattr(os, "open", denied)
        with pytest.raises(SinkError):
            await sink.send([*RecordSource().take(1)])
        await sink.close()
    assert count_descriptors() == before


async def test_a_full_device_is_reported() -> None:
    sink = JsonLinesSink(Path("/dev/full"))
    await sink.open()
    with pytest.raises(SinkError, match=r"^/dev/full: No space left on device$"):
        await sink.send([*RecordSource().take(1)])
    await sink.close()


async def test_dev_null_accepts_records_and_is_never_rotated() -> None:
    sink = JsonLinesSink(Path("/dev/null"), rotate_bytes=1)
    await sink.open()
    for _ in range(3):
        assert await sink.send([*RecordSource().take(1)]) == ()
    await sink.close()
    assert not list(Path("/dev").glob("null.*"))  # noqa: ASYNC240 - /dev is in memory


async def test_a_missing_directory_is_reported(folder: Path) -> None:
    with pytest.raises(SinkError, match=r"none/r\.jsonl: No such file or directory$"):
        await JsonLinesSink(folder / "none" / "r.jsonl").open()


async def test_a_full_disk_delays_records_until_there_is_room(folder: Path) -> None:
    with tmpfs(folder / "disk", "size=256k"):
        path, source = folder / "disk" / "records.jsonl", RecordSource()
        filler = fill_disk(folder / "disk")
        pipeline = make_pipeline(JsonLinesSink(path), None)
        async with running(pipeline):
            for record in source.take(100):
                pipeline.put(record)
            await eventually(lambda: any("No space left" in reason for reason in pipeline.unready_reasons()))
            filler.unlink()
            await eventually(lambda: pipeline.unready_reasons() == [])
        assert read_ids(path) == source.ids


async def test_a_disk_that_fills_up_leaves_whole_lines_and_repeats_none(folder: Path) -> None:
    with tmpfs(folder / "disk", "size=64k"):
        path, source = folder / "disk" / "records.jsonl", RecordSource(size=777)
        sink, records = JsonLinesSink(path), [*source.take(200)]
        filler = folder / "disk" / "filler"
        filler.write_bytes(bytes(16_000))
        await sink.open()
        for _ in range(3):
            with pytest.raises(SinkError, match="No space left"):
                await sink.send(records)
            written = read_ids(path)
            assert written == source.ids[: len(written)]
            assert 0 < len(written) < 200
            await sink.close()
            await sink.open()
        filler.unlink()
        with pytest.raises(SinkError, match="No space left"):
            await sink.send(records)
        assert len(read_ids(path)) > len(written)
        resize(folder / "disk", "1m")
        await send(sink, records)
        await send(sink, [*source.take(3)])
        await sink.close()
        assert read_ids(path) == source.ids


async def test_reopening_the_file_waits_for_the_write_of_another_queue(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written, go_on, write = threading.Event(), threading.Event(), os.write

    def write_in_two_parts(descriptor: int, data: memoryview) -> int:
        if written.is_set():
            return write(descriptor, data)
        count = write(descriptor, data[:50])
        written.set()
        go_on.wait(60)
        return count

    source, sink = RecordSource(size=100), JsonLinesSink(folder / "records.jsonl")
    await sink.open()
    monkeypatch.setattr("os.write", write_in_two_parts)
    sending = asyncio.create_task(send(sink, [*source.take(2)]))
    await asyncio.to_thread(written.wait, 180)
    asyncio.get_running_loop().call_later(0.2, go_on.set)
    await sink.close()  # as after the failure of another queue
    await sink.open()
    await sending
    await sink.close()
    assert read_ids(folder / "records.jsonl") == source.ids


async def test_a_failed_write_to_a_file_without_append_mode_is_cut_back(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with tmpfs(folder / "disk", "size=64k"), (folder / "disk" / "out").open("w") as file:
        monkeypatch.setattr(sys, "stdout", file)
        source, sink = RecordSource(size=777), JsonLinesSink(None)
        await sink.open()
        records = [*source.take(200)]
        with pytest.raises(SinkError, match="No space left"):
            await sink.send(records)
        assert read_ids(folder / "disk" / "out") == source.ids[: len(read_ids(folder / "disk" / "out"))]
        resize(folder / "disk", "1m")
        await send(sink, records)
        assert read_ids(folder / "disk" / "out") == source.ids


async def test_a_pipe_that_is_full_gets_the_rest_of_a_line_later(monkeypatch: pytest.MonkeyPatch) -> None:
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    received = b""
    with os.fdopen(writer, "w") as out, monkeypatch.context() as patch:
        patch.setattr(sys, "stdout", out)
        source, sink = RecordSource(size=5000), JsonLinesSink(None)
        await sink.open()
        records = [*source.take(60)]
        for _ in range(60):
            try:
                await send(sink, records)
                break
            except SinkError:
                received += os.read(reader, 33_333)
        os.set_blocking(reader, False)
        with contextlib.suppress(BlockingIOError):
            while True:
                received += os.read(reader, 1 << 16)
    os.close(reader)
    assert [json.loads(line)["id"] for line in received.splitlines()] == source.ids


async def test_standard_output_stays_open(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with (folder / "out").open("w") as file, monkeypatch.context() as patch:
        patch.setattr(sys, "stdout", file)
        source, sink = RecordSource(), JsonLinesSink(None, rotate_bytes=10)
        await sink.open()
        await send(sink, [*source.take(3)])
        await sink.close()
        os.fstat(file.fileno())
    assert sink.name == "standard output"
    assert read_ids(folder / "out") == source.ids


async def test_a_closed_standard_output_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    reader, writer = os.pipe()
    with os.fdopen(writer, "w") as out, monkeypatch.context() as patch:
        patch.setattr(sys, "stdout", out)
        sink = JsonLinesSink(None)
        await sink.open()
        os.close(reader)
        with pytest.raises(SinkError, match=r"^standard output: Broken pipe$"):
            await sink.send([*RecordSource().take(1)])
        await sink.close()
