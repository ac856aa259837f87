"""What ended leaves nothing for the garbage collector. Run before those tests that provoke errors: pytest keeps what they raised."""

import gc

from agent.qmp.client import Client
from agent.vm.session import Session
from tests.lab.fake import FakeQemu
from tests.unit.notes import Notes, watching


async def test_a_connection_that_ended_leaves_no_circle_of_memory_behind(fake: FakeQemu) -> None:
    """Garbage that refers to itself is looked for seldom, and connections come and go."""
    notes = Notes()
    gc.collect()
    gc.disable()
    try:
        async with watching(notes, fake.path):
            for times in range(1, 6):
                await notes.until(lambda: len(notes.outcomes("kvm")) >= times)  # noqa: B023 - awaited here
                fake.drop()
                await notes.until(lambda: len(notes.records("vm.attached")) > times)  # noqa: B023 - awaited here
            left = [type(thing).__name__ for thing in gc.get_objects() if isinstance(thing, Session | Client)]
    finally:
        gc.enable()
    assert len(left) <= 2, left
