"""How long it takes from QEMU's own time of a threshold's event until Kafka has acknowledged the alert.

    python -m tests.bench.alert_latency [--events N]

A real QEMU whose guest writes all the time, a real broker, the journal on; the agent arms one rung after the other. The guest's disk
lies in memory where it can: on the journal's own file system each of the journal's fsyncs would have to write the guest's data too.
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
from agent.app.dispatcher import SessionDispatcher
from agent.cli.demo.guest import until
from agent.config.model import Config
from agent.delivery.sinks.base import Sink
from agent.model.record import EncodedRecord, Record
from tests.lab.kafka import KafkaCluster
from tests.lab.thin_guests import started

STEP_KIB: Final = 512
"""How far the rungs are from each other: the guest takes longer for it than the agent to arm the next."""
AIM_MS: Final = 50.0
STAGES: Final = ("QEMU to the agent", "agent and journal", "Kafka", "all")


class Timed:
    """A sink that takes the time of another's acknowledgements."""

    def __init__(self, sink: Sink) -> None:
        self.name = sink.name
        self.sent: list[tuple[int, int, int]] = []
        """Of each alert: QEMU's time of its event, when sending began, when it was acknowledged; in ns."""
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
                    self.sent.append((entry.time_ns, began, now))
        return refused

    async def close(self) -> None:
        await self._sink.close()


class TimingDispatcher(SessionDispatcher):
    """Notes when each threshold event was received.

    Attributes:
        received: the time of receipt by QEMU's time of the event, both in nanoseconds.
    """

    def __init__(self, app: Agent) -> None:
        super().__init__(app.publisher, app.snapshot, app.alerts, app.metrics, app.progress)
        self.received: dict[int, int] = {}

    def on_event(self, record: Record) -> None:
        if record.type == "qemu.event.block_write_threshold":
            self.received[record.time_ns] = time.time_ns()
        super().on_event(record)


MEMORY = "/dev/shm" if Path("/dev/shm").is_dir() else None
"""Where the guest's disk lies, so that its writes do not wait for the journal's."""


async def device_size_of(events: int) -> dict[str, list[float]]:
    """Return the milliseconds that each stage took, for each of so many events."""
    with tempfile.TemporaryDirectory(prefix="qmp-") as name, tempfile.TemporaryDirectory(dir=MEMORY) as place:
        folder, guests = Path(name), Path(place)
        async with KafkaCluster(folder / "kafka") as kafka:
            for topic in ("qemu.events", "qemu.samples", "qemu.alerts"):
                await kafka.create_topic(topic, partitions=4)
            config = Config.model_validate(
                {
                    "monitors": [{"dial": f"{guests}/*.qmp"}],
                    "web": {"listen_address": "127.0.0.1:0"},
                    "kafka": {"bootstrap_servers": kafka.bootstrap},
                    "journal": {"directory": str(folder / "journal")},
                    "alerts": {
                        "write_threshold": {
                            "mode": "arm",
                            "levels": [f"used {STEP_KIB * number}KiB" for number in range(1, 4 * events + 20)],
                        }
                    },
                }
            )
            timed = Timed(build_sink(config))
            app = Agent(config, timed)
            app.observer = dispatcher = TimingDispatcher(app)
            async with app.running(), started(guests, disk_mib=4096, write_kib=8):
                await until(lambda: len(timed.sent) > events, 60 + 2 * events)
            return stages(timed, dispatcher)


def stages(timed: Timed, dispatcher: TimingDispatcher) -> dict[str, list[float]]:
    """Return the milliseconds of each stage, but for the first alert, before which Kafka's client has not met its partition."""
    found: dict[str, list[float]] = {stage: [] for stage in STAGES}
    for occurred, began, acknowledged in timed.sent[1:]:
        received = dispatcher.received[occurred]
        spans = (received - occurred, began - received, acknowledged - began, acknowledged - occurred)
        for stage, span in zip(STAGES, spans, strict=True):
            found[stage].append(span / 1e6)
    return found


def main() -> None:
    """Measure, and print."""
    logging.disable(logging.WARNING)  # each alert is one
    parser = argparse.ArgumentParser(description="How long it takes from QEMU's event until Kafka has the alert.")
    parser.add_argument("--events", type=int, default=200, help="how many events, 200 by default")
    found = uvloop.run(device_size_of(parser.parse_args().events))
    print(f"{len(found['all'])} events, milliseconds")
    print(f"{'':<20}{'median':>8}{'p90':>8}{'p99':>8}{'most':>8}")
    for stage, spans in found.items():
        cuts = quantiles(spans, n=100, method="inclusive")
        print(f"{stage:<20}{cuts[49]:>8.1f}{cuts[89]:>8.1f}{cuts[98]:>8.1f}{max(spans):>8.1f}")
        if stage == "all":
            print(f"the aim, p99 below {AIM_MS:g} ms, is {'met' if cuts[98] < AIM_MS else 'missed'}")


if __name__ == "__main__":
    main()
