"""The kinds of lane storage, for one suite of cases that all of them have to pass."""

from dataclasses import dataclass
from pathlib import Path
from typing import Final

import pytest

from agent.delivery.pipeline import DeliveryPipeline
from agent.delivery.queue import RecordQueue
from tests.lab.scripted_sink import EVENT, SAMPLE


@dataclass(frozen=True, slots=True)
class Kind:
    """One way of keeping records.

    Attributes:
        name: what the test report calls it.
        type: the type of record that is kept so.
        journaled: whether there is a journal.
        durable: whether all goes there.
    """

    name: str
    type: str
    journaled: bool
    durable: bool

    def lane(self, delivery: DeliveryPipeline) -> RecordQueue:
        """Return the lane that its records go to."""
        return delivery.samples if self.type == SAMPLE else delivery.events

    def folder(self, folder: Path) -> Path | None:
        """Return where its journal lies."""
        return folder / "journal" if self.journaled else None


MEMORY: Final = Kind("memory", EVENT, journaled=False, durable=False)
DURABLE: Final = Kind("durable", EVENT, journaled=True, durable=True)
SPILLING: Final = Kind("spilling", SAMPLE, journaled=True, durable=False)
KINDS: Final = (MEMORY, DURABLE, SPILLING)

each_kind: Final = pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
journaled_kinds: Final = pytest.mark.parametrize("kind", KINDS[1:], ids=lambda kind: kind.name)
