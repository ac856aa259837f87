"""CPU and bytes of a record: its encoding, its Kafka message in each content mode, and its part of a batch. In this process.

The reference is the record as it was before the attributes of CloudEvents' extensions and the headers, built from the record of today.
"""

import json
import random
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import orjson
from aiokafka.producer.message_accumulator import BatchBuilder

from agent.delivery.sinks.kafka.config import KafkaTopicsConfig
from agent.delivery.sinks.kafka.message import (
    HeaderAttribute,
    KafkaMessage,
    MessageEncoder,
    StructuredMessageEncoder,
    binary_message,
)
from agent.model.family import Sample
from agent.model.metrics.block import BLOCK
from agent.model.record import EncodedRecord, Record, RecordEncoder, Severity, Vm
from tests.bench.table import Row
from tools.reference import EXAMPLES

VMS: Final = 100
DISKS: Final = 2
RECORDS: Final = 4000
CODECS: Final = {"uncompressed": 0, "zstd": 4}
BATCH_SIZES: Final = (1, 10, 100, 1000)
MAX_BATCHES: Final = 400
PARTITIONS: Final = 4
KINDS: Final = ("sample", "event", "alert")

_HEAD: Final = ("specversion", "source", "host", "partitionkey", "vmuuid", "vmname", "id", "type", "time", "subject")
"""Attributes that the records have always had."""

_ENCODERS: Final[dict[str, MessageEncoder]] = {
    "without headers": StructuredMessageEncoder([]),
    "structured": StructuredMessageEncoder(),
    "structured with all headers": StructuredMessageEncoder(HeaderAttribute),
    "binary": binary_message,
}


def _message_before_extensions(record: EncodedRecord) -> KafkaMessage:
    """Return the message that the agent sent for a record before it had extensions and headers."""
    event = orjson.loads(record.body)
    before = {name: event[name] for name in _HEAD if name in event} | {"datacontenttype": "application/json"}
    before |= {"severity": record.severity.label, "sequence": record.id.partition("-")[2], "data": event["data"]}
    content_type = ("content-type", b"application/cloudevents+json; charset=UTF-8")
    return record.key.encode(), orjson.dumps(before), [content_type]


@dataclass(slots=True)
class _Traffic:
    """Records of many VMs, with the values of real ones, each with another random part."""

    draw: random.Random
    now_ns: int = 0

    def vms(self) -> list[Vm]:
        uuids = [f"{self.draw.getrandbits(32):08x}-1111-4111-8111-{number:012d}" for number in range(VMS)]
        return [Vm("hv7", uuid, f"guest-{number}", f"/run/qemu/{number}.qmp") for number, uuid in enumerate(uuids)]

    def vary(self, value: Any) -> Any:
        """Return another value of a counter or gauge; the same value if it is 0, a text or a flag."""
        match value:
            case bool() | 0:
                return value
            case int():
                return value + self.draw.randrange(10**6)
            case float():
                return round(value * self.draw.random(), 9)
            case dict():
                return {name: self.vary(inner) for name, inner in value.items()}
        return value

    def polls(self) -> Iterator[tuple[Vm, list[Sample]]]:
        """Yield the samples of two disks of each VM."""
        data = next(record["data"] for record in _examples() if record["type"] == BLOCK.type)
        values = {name: value for name, value in data.items() if name not in BLOCK.labels}
        for vm in self.vms():
            yield vm, [Sample(BLOCK, (f"disk{disk}",), self.vary(values)) for disk in range(DISKS)]

    def records(self, kind: str) -> list[EncodedRecord]:
        """Return records of a kind from a topic. Records in other topics are between them, as in reality."""
        examples = [event for event in _examples() if event["type"].split(".")[1] == kind]
        if kind == "sample":
            examples = [event for event in examples if event["type"] == BLOCK.type]
        severities = {severity.opentelemetry_text: severity for severity in Severity}
        vms, start = self.vms(), time.time_ns()
        encode = RecordEncoder(start, KafkaTopicsConfig().topic_for, lambda: self.now_ns)
        records = []
        for number in range(RECORDS):
            event, vm = self.draw.choice(examples), self.draw.choice(vms)
            time_ns = start + number * 2_000_000 + self.draw.randrange(2_000_000)
            self.now_ns = time_ns + self.draw.randrange(30_000, 3_000_000)
            for _ in range(self.draw.randrange(4) if kind != "sample" else 0):
                encode.encode_samples(vm, [Sample(BLOCK, ("disk0",), {})], time_ns)
            records.append(
                encode(
                    Record(
                        event["type"],
                        vm,
                        self.vary(event["data"]),
                        time_ns,
                        event.get("subject", ""),
                        severities[event["severitytext"]],
                        event.get("sampledrate", 1),
                        event.get("causationid", ""),
                    )
                )
            )
        return records


def _examples() -> list[Mapping[str, Any]]:
    return [json.loads(line) for line in EXAMPLES.read_text("utf-8").splitlines()]


def _batches(records: Sequence[EncodedRecord], size: int) -> list[Sequence[EncodedRecord]]:
    """Return the records in batches of this size, at most `MAX_BATCHES`."""
    return [records[start : start + size] for start in range(0, len(records), size)][:MAX_BATCHES]


def _batch_bytes(batches: Iterable[Sequence[EncodedRecord]], encode: MessageEncoder, codec: int) -> int:
    """Return the bytes of batches with these records."""
    total = 0
    for records in batches:
        batch = BatchBuilder(1 << 24, codec)
        for record in records:
            key, value, headers = encode(record)
            batch.append(timestamp=record.time_ns // 1_000_000, key=key, value=value, headers=headers)
        batch.close()
        total += len(batch._build())
    return total


def _bytes(kind: str) -> Iterator[Row]:
    """Yield the bytes of a kind of record by codec and size of the batch. The ratio is to the records before the extensions."""
    records = _Traffic(random.Random(1)).records(kind)
    for codec, number in CODECS.items():
        for size in BATCH_SIZES:
            batches = _batches(records, size)
            count = sum(map(len, batches))
            before, *now = (
                _batch_bytes(batches, encode, number) / count
                for encode in (_message_before_extensions, *_ENCODERS.values())
            )
            others = ", ".join(f"{name} {now[at]:.0f}" for at, name in enumerate(_ENCODERS) if name != "structured")
            figure = now[list(_ENCODERS).index("structured")]
            yield Row(
                f"{kind}, batch of {size}, {codec}",
                f"{figure:.0f} bytes ({others})",
                figure / before,
                f"{before:.0f} bytes before",
                "≤ 1.1" if number else "",
                figure <= 1.1 * before if number else None,
            )


def _cpu(rounds: int) -> list[Row]:
    """Return the CPU of a sample. The smallest of many measurements counts, because disturbances only ever add."""
    polls, encode, start = list(_Traffic(random.Random(1)).polls()), RecordEncoder(), time.time_ns()
    encoding, sending = [], {name: list[int]() for name in _ENCODERS}
    for round_ in range(rounds):
        before = time.process_time_ns()
        encoded = []
        for number, (vm, samples) in enumerate(polls):
            encoded += encode.encode_samples(vm, samples, start + round_ * 250_000_000 + number * 2_500_000)
        encoding.append(time.process_time_ns() - before)
        partitions = [encoded[number::PARTITIONS] for number in range(PARTITIONS)]
        for name, to_message in _ENCODERS.items():
            before = time.process_time_ns()
            _batch_bytes(partitions, to_message, CODECS["zstd"])
            sending[name].append(time.process_time_ns() - before)
    count = VMS * DISKS
    rows = [Row("a disk's sample: encode", f"{min(encoding) / count / 1000:.1f} us")]
    for name, times in sending.items():
        rows.append(Row(f"its message and its part of a zstd batch, {name}", f"{min(times) / count / 1000:.1f} us"))
    return rows


async def records(*, short: bool) -> list[Row]:
    """Return the rows."""
    return [*_cpu(30 if short else 200), *(row for kind in KINDS for row in _bytes(kind))]
