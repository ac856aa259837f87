"""The kinds of queues, for one suite of tests that all of them have to pass."""

from dataclasses import dataclass
from pathlib import Path
from typing import Final

import pytest

from agent.delivery.pipeline import DeliveryPipeline
from agent.delivery.queue import RecordQueue
from tests.lab.scripted_sink import EVENT, SAMPLE


@dataclass(frozen=True, slots=True)
class QueueKind:
    """One way of storing records.

    Attributes:
        name: its name in the test report.
        type: the type of record that is stored so.
        journaled: whether there is a journal.
        durable: whether every record is journaled.
    """

    name: str
    type: str
    journaled: bool
    durable: bool

    def queue(self, pipeline: DeliveryPipeline) -> RecordQueue:
        """Return the queue of its records."""
        return pipeline.samples if self.type == SAMPLE else pipeline.events

    def folder(self, folder: Path) -> Path | None:
        """Return the directory of its journal; None for no journal."""
        return folder / "journal" if self.journaled else None


MEMORY: Final = QueueKind("memory", EVENT, journaled=False, durable=False)
DURABLE: Final = QueueKind("durable", EVENT, journaled=True, durable=True)
SPILLING: Final = QueueKind("spilling", SAMPLE, journaled=True, durable=False)
KINDS: Final = (MEMORY, DURABLE, SPILLING)

each_kind: Final = pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
journaled_kinds: Final = pytest.mark.parametrize("kind", KINDS[1:], ids=lambda kind: kind.name)
