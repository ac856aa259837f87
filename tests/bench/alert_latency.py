"""Latency of an alert, from QEMU's timestamp of a write threshold's event to Kafka's acknowledgement.

    python -m tests.bench.alert_latency [--events N]

The run has a real QEMU whose guest writes all the time, a real broker, and a journal. The agent arms one level after the other. The
guest's disk is in memory if possible: on the journal's file system, each fsync of the journal would have to write the guest's data too.
"""

import argparse
import logging
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import quantiles
from typing import Final

import orjson
import uvloop

from agent.app.agent import Agent
from agent.app.builders import build_sink
from agent.app.dispatcher import SessionReportDispatcher
from agent.config.model import Config
from agent.delivery.sinks.base import Sink
from agent.model.record import EncodedRecord, Record
from tests.lab.kafka import KafkaCluster
from tests.lab.thin_guests import thin_guest
from tests.lab.waiting import until

STEP_KIB: Final = 512
"""Distance of the levels. The guest takes longer to write this much than the agent takes to arm the next level."""
TARGET_MS: Final = 50.0
STAGES: Final = ("QEMU to the agent", "agent and journal", "Kafka", "all")


class TimedAlertSink:
    """A sink that records when another sink's alerts are acknowledged."""

    def __init__(self, sink: Sink) -> None:
        self.name = sink.name
        self.alerts: list[tuple[int, int, int]] = []
        """For each alert: QEMU's timestamp of the event, start of sending, acknowledgement; in ns."""
        self._sink = sink

    async def open(self) -> None:
        await self._sink.open()

    async def send(self, batch: Sequence[EncodedRecord]) -> Sequence[EncodedRecord]:
        began = time.time_ns()
        refused = await self._sink.send(batch)
        now = time.time_ns()
        for entry in batch:
            if entry.type == "qemu.alert.write_threshold":
                data = orjson.loads(entry.body)["data"]
                if (data["state"], data["detected_by"]) == ("firing", "event"):
                    self.alerts.append((entry.time_ns, began, now))
        return refused

    async def close(self) -> None:
        await self._sink.close()


class TimingDispatcher(SessionReportDispatcher):
    """Records when each threshold event was received.

    Attributes:
        received: The time of receipt by QEMU's timestamp of the event; both in ns.
    """

    def __init__(self, app: Agent) -> None:
        parts = (
            app.publisher,
            app.snapshot,
            app.alerts,
            app.storage,
            app.metrics,
            app.hang_detector,
            app.guests,
            app.io_stalls,
        )
        super().__init__(*parts)
        self.received: dict[int, int] = {}

    def on_event(self, record: Record) -> None:
        if record.type == "qemu.event.block_write_threshold":
            self.received[record.time_ns] = time.time_ns()
        super().on_event(record)


MEMORY = "/dev/shm" if Path("/dev/shm").is_dir() else None
"""Directory of the guest's disk, so that its writes do not wait for the journal's."""


async def measure(events: int) -> dict[str, list[float]]:
    """Return the milliseconds that each stage took, one value for each event."""
    with tempfile.TemporaryDirectory(prefix="qmp-") as name, tempfile.TemporaryDirectory(dir=MEMORY) as disks:
        folder, guests = Path(name), Path(disks)
        async with KafkaCluster(folder / "kafka") as kafka:
            for topic in ("qemu.events", "qemu.samples", "qemu.alerts", "qemu.state"):
                await kafka.create_topic(topic, partitions=4)
            config = Config.model_validate(
                {
                    "monitors": [{"dial": f"{guests}/*.qmp"}],
                    "web": {"listen_address": "127.0.0.1:0"},
                    "kafka": {"bootstrap_servers": kafka.bootstrap},
                    "journal": {"directory": str(folder / "journal")},
                    "alerts": {
                        "disks": {
                            "mode": "arm",
                            "levels": [f"used {STEP_KIB * number}KiB" for number in range(1, 4 * events + 20)],
                        }
                    },
                }
            )
            sink = TimedAlertSink(build_sink(config))
            app = Agent(config, sink)
            app.observer = dispatcher = TimingDispatcher(app)
            async with app.run_in_background(), thin_guest(guests, disk_mib=4096, write_kib=8):
                await until(lambda: len(sink.alerts) > events, 60 + 2 * events)
            return stages(sink, dispatcher)


def stages(sink: TimedAlertSink, dispatcher: TimingDispatcher) -> dict[str, list[float]]:
    """Return the milliseconds of each stage, without the first alert, for which Kafka's client connects to the partition."""
    milliseconds: dict[str, list[float]] = {stage: [] for stage in STAGES}
    for occurred, began, acknowledged in sink.alerts[1:]:
        received = dispatcher.received[occurred]
        spans = (received - occurred, began - received, acknowledged - began, acknowledged - occurred)
        for stage, span in zip(STAGES, spans, strict=True):
            milliseconds[stage].append(span / 1e6)
    return milliseconds


def main() -> None:
    """Measure and print the table."""
    logging.disable(logging.WARNING)  # each alert is logged as a warning
    parser = argparse.ArgumentParser(description="Latency of an alert, from QEMU's event to Kafka's acknowledgement.")
    parser.add_argument("--events", type=int, default=200, help="number of events; default: 200")
    milliseconds = uvloop.run(measure(parser.parse_args().events))
    print(f"{len(milliseconds['all'])} events, milliseconds")
    print(f"{'':<20}{'median':>8}{'p90':>8}{'p99':>8}{'max':>8}")
    for stage, spans in milliseconds.items():
        cuts = quantiles(spans, n=100, method="inclusive")
        print(f"{stage:<20}{cuts[49]:>8.1f}{cuts[89]:>8.1f}{cuts[98]:>8.1f}{max(spans):>8.1f}")
        if stage == "all":
            print(f"target p99 < {TARGET_MS:g} ms: {'met' if cuts[98] < TARGET_MS else 'missed'}")


if __name__ == "__main__":
    main()
