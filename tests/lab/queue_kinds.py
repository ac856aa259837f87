"""The kinds of delivery queues. One suite of tests runs for each kind."""

from dataclasses import dataclass
from pathlib import Path
from typing import Final

import pytest

from agent.delivery.pipeline import DeliveryPipeline
from agent.delivery.queue import RecordQueue
from tests.lab.scripted_sink import EVENT, SAMPLE


@dataclass(frozen=True, slots=True)
class QueueKind:
    """A kind of queue: how it stores its records.

    Attributes:
        name: the name in the test report.
        type: a type of record that goes to this queue.
        journaled: whether the pipeline has a journal.
        durable: whether the queue writes every record to the journal.
    """

    name: str
    type: str
    journaled: bool
    durable: bool

    def queue(self, pipeline: DeliveryPipeline) -> RecordQueue:
        """Return this queue of a pipeline."""
        return pipeline.samples if self.type == SAMPLE else pipeline.events

    def folder(self, folder: Path) -> Path | None:
        """Return the directory for the journal; None for no journal."""
        return folder / "journal" if self.journaled else None


MEMORY: Final = QueueKind("memory", EVENT, journaled=False, durable=False)
DURABLE: Final = QueueKind("durable", EVENT, journaled=True, durable=True)
SPILLING: Final = QueueKind("spilling", SAMPLE, journaled=True, durable=False)
KINDS: Final = (MEMORY, DURABLE, SPILLING)

each_kind: Final = pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
journaled_kinds: Final = pytest.mark.parametrize("kind", KINDS[1:], ids=lambda kind: kind.name)
