"""CPU and bytes of a record: its encoding, its Kafka message in each content mode, and its part of a compressed batch. In this process."""

import json
import random
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Final

from aiokafka.producer.message_accumulator import BatchBuilder

from agent.delivery.sinks.kafka.message import KafkaMessage, binary_message, structured_message
from agent.model.family import Sample
from agent.model.metrics.block import BLOCK
from agent.model.record import EncodedRecord, RecordEncoder, Vm
from tests.bench.table import Row
from tools.reference import EXAMPLES

VMS: Final = 100
DISKS: Final = 2
PARTITIONS: Final = 4
ZSTD: Final = 4

_MESSAGES: Final[dict[str, Callable[[EncodedRecord], KafkaMessage]]] = {
    "without headers": lambda record: KafkaMessage(record.key.encode(), record.body, []),
    "structured": structured_message,
    "binary": binary_message,
}


def _polls() -> Iterator[tuple[Vm, list[Sample]]]:
    """Yield the samples of two disks of each VM. The values are those of a real disk, each with another random part."""
    lines = map(json.loads, EXAMPLES.read_text("utf-8").splitlines())
    data = next(record["data"] for record in lines if record["type"] == BLOCK.type)
    draw = random.Random(1)
    values = {name: value for name, value in data.items() if name not in BLOCK.labels}
    for number in range(VMS):
        uuid = f"{draw.getrandbits(32):08x}-1111-4111-8111-{number:012d}"
        samples = []
        for disk in range(DISKS):
            varied = {name: _vary(value, draw) for name, value in values.items()}
            samples.append(Sample(BLOCK, (f"disk{disk}",), varied))
        yield Vm("hv7", uuid, f"guest-{number}", f"/run/qemu/{number}.qmp"), samples


def _vary(value: object, draw: random.Random) -> object:
    """Return another value of a counter or gauge; the same value if it is 0, a text or a flag."""
    match value:
        case bool() | 0:
            return value
        case int():
            return value + draw.randrange(10**6)
        case float():
            return round(value * draw.random(), 9)
    return value


def _batch_bytes(records: Sequence[EncodedRecord], to_message: Callable[[EncodedRecord], KafkaMessage]) -> int:
    """Return the bytes of the compressed batches of all partitions."""
    batches = [BatchBuilder(1 << 20, ZSTD) for _ in range(PARTITIONS)]
    for number, record in enumerate(records):
        key, value, headers = to_message(record)
        batch = batches[number // DISKS % PARTITIONS]
        batch.append(timestamp=record.time_ns // 1_000_000, key=key, value=value, headers=headers)
    for batch in batches:
        batch.close()
    return sum(len(batch._build()) for batch in batches)


async def records(*, short: bool) -> list[Row]:
    """Return the rows. The smallest of many measurements counts, because disturbances only ever add."""
    polls, encode, start = list(_polls()), RecordEncoder(), time.time_ns()
    encoding, sending = [], {name: list[int]() for name in _MESSAGES}
    sizes = dict.fromkeys(_MESSAGES, 0)
    for round_ in range(30 if short else 200):
        before = time.process_time_ns()
        encoded = []
        for number, (vm, samples) in enumerate(polls):
            encoded += encode.encode_samples(vm, samples, start + round_ * 250_000_000 + number * 2_500_000)
        encoding.append(time.process_time_ns() - before)
        for name, to_message in _MESSAGES.items():
            before = time.process_time_ns()
            sizes[name] = _batch_bytes(encoded, to_message)
            sending[name].append(time.process_time_ns() - before)
    count = VMS * DISKS
    bare = sizes["without headers"]
    body_bytes = sum(len(record.body) for record in encoded) // count
    rows = [Row("a disk's record: encode", f"{min(encoding) / count / 1000:.1f} us, {body_bytes} bytes")]
    for name, size in sizes.items():
        cost = min(sending[name]) / count / 1000
        rows.append(
            Row(
                f"its part of a zstd batch, {name}",
                f"{cost:.1f} us, {size / count:.0f} bytes",
                size / bare,
                "the bytes without headers",
                "≤ 1.1" if name != "without headers" else "",
                size <= 1.1 * bare if name != "without headers" else None,
            )
        )
    return rows
