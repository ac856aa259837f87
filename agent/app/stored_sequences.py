"""Keeps the newest sequence of each source in the journal, so that `previoussequence` continues in the next run of the agent.

A sequence is stored in the transaction that stores its record. Samples are not journaled, so their sequences are stored only when the
agent stops on request. After a kill, the first samples of the next run have no `previoussequence`: samples may have been lost.
"""

from collections.abc import Callable, Iterable, Iterator, MutableMapping
from typing import Any, Final

from agent.model.metrics import FAMILIES
from agent.model.record import PersistentNote
from agent.model.sequences import SequenceRegistry

NOTE_PREFIX: Final = "sequence/"
"""Prefix of the names of the notes in the journal. The rest of the name is the topic and the source, which begins with a slash."""
STOP_NOTE: Final = "sequences"
"""Name of the note with the sequences of samples. It is valid only until the next run begins."""


class StoredSequences:
    """The newest sequences in the journal, as notes."""

    def __init__(self, topic_of: Callable[[str], str]) -> None:
        """Set up without sequences.

        Args:
            topic_of: returns the topic of a record type.
        """
        self._registry = SequenceRegistry("")
        self._sample_topics = frozenset(topic_of(family.type) for family in FAMILIES)
        self._obsolete: list[str] = [STOP_NOTE]  # names of notes to delete

    def restore(self, registry: SequenceRegistry, notes: MutableMapping[str, Any]) -> None:
        """Restore the sequences of the last run, and remove their notes from `notes`.

        Args:
            registry: the sequences of this run.
            notes: values of the notes in the journal, by name.
        """
        self._registry = registry
        stored = list(self._parse_notes(notes))
        for name in [name for name in notes if name == STOP_NOTE or name.startswith(NOTE_PREFIX)]:
            del notes[name]
            if name.removeprefix(NOTE_PREFIX).partition("/")[0] in self._sample_topics:
                self._obsolete.append(name)
        registry.restore(stored)

    def _parse_notes(self, notes: MutableMapping[str, Any]) -> Iterator[tuple[str, str, str]]:
        for name, value in notes.items():
            topic, slash, source = name.removeprefix(NOTE_PREFIX).partition("/")
            if name.startswith(NOTE_PREFIX) and isinstance(value, str):
                yield topic, slash + source, value
        at_stop = notes.get(STOP_NOTE)
        for topic, by_source in at_stop.items() if isinstance(at_stop, dict) else ():
            for source, value in by_source.items() if isinstance(by_source, dict) else ():
                if isinstance(value, str) and topic in self._sample_topics:
                    yield topic, source, value

    def changed_notes(self, whole: bool) -> Iterable[PersistentNote]:  # noqa: FBT001 - a callback's only argument
        """Yield the notes to store in a transaction. The first call also deletes the notes that are not valid after this run.

        Args:
            whole: True to yield the notes of all sources; False to yield only the notes of changed sources.
        """
        obsolete, self._obsolete = self._obsolete, []
        yield from (PersistentNote(name, None) for name in obsolete)
        if whole:
            self._registry.mark_all_changed()
        for topic, source, sequence in self._registry.take_changes(without=self._sample_topics):
            yield PersistentNote(f"{NOTE_PREFIX}{topic}{source}", sequence)

    def note_at_stop(self) -> PersistentNote:
        """Return the note with the sequences of samples. Call it after the last sample of the run."""
        by_topic: dict[str, dict[str, str]] = {}
        for topic, source, sequence in self._registry.newest(self._sample_topics):
            by_topic.setdefault(topic, {})[source] = sequence
        return PersistentNote(STOP_NOTE, by_topic)
