"""Keeps the newest sequence of each record source in the journal, so that `previoussequence` continues in the next run of the agent.

The attribute `sequence` of a record orders the records of a source. The attribute `previoussequence` is the sequence of the source's
previous record in the topic. The journal stores a sequence in the transaction that stores its record. Samples are not journaled. So the
sequences of samples are stored only when the agent stops on request. After a kill, samples may have been lost. So the first samples of the
next run have no `previoussequence`.
"""

from collections.abc import Callable, Iterable, Iterator, MutableMapping
from typing import Any, Final

from agent.model.metrics import FAMILIES
from agent.model.persistent_entry import PersistentEntry
from agent.model.sequences import SequenceRegistry

SEQUENCE_ENTRY_PREFIX: Final = "sequence/"
"""Prefix of the name of a source's persistent entry. The name continues with the topic and the source. The source begins with a slash."""
SAMPLE_SEQUENCES_ENTRY_NAME: Final = "sequences"
"""Name of the persistent entry with the sequences of samples. Only the next run uses the entry."""


class StoredSequences:
    """The newest sequence of each record source, as persistent entries in the journal."""

    def __init__(self, topic_of: Callable[[str], str]) -> None:
        """Create the object. Call `restore` to load the sequences.

        Args:
            topic_of: returns the topic of a record type.
        """
        self._registry = SequenceRegistry("")
        self._sample_topics = frozenset(topic_of(family.type) for family in FAMILIES)
        self._obsolete: list[str] = [SAMPLE_SEQUENCES_ENTRY_NAME]  # names of entries to delete

    def restore(self, registry: SequenceRegistry, entries: MutableMapping[str, Any]) -> None:
        """Restore the sequences of the last run, and remove their entries from `entries`.

        Args:
            registry: the sequences of this run.
            entries: values of the entries in the journal, by name.
        """
        self._registry = registry
        stored = list(self._parse_entries(entries))
        for name in [
            name for name in entries if name == SAMPLE_SEQUENCES_ENTRY_NAME or name.startswith(SEQUENCE_ENTRY_PREFIX)
        ]:
            del entries[name]
            if name.removeprefix(SEQUENCE_ENTRY_PREFIX).partition("/")[0] in self._sample_topics:
                self._obsolete.append(name)
        registry.restore(stored)

    def _parse_entries(self, entries: MutableMapping[str, Any]) -> Iterator[tuple[str, str, str]]:
        for name, value in entries.items():
            topic, slash, source = name.removeprefix(SEQUENCE_ENTRY_PREFIX).partition("/")
            if name.startswith(SEQUENCE_ENTRY_PREFIX) and isinstance(value, str):
                yield topic, slash + source, value
        at_stop = entries.get(SAMPLE_SEQUENCES_ENTRY_NAME)
        for topic, by_source in at_stop.items() if isinstance(at_stop, dict) else ():
            for source, value in by_source.items() if isinstance(by_source, dict) else ():
                if isinstance(value, str) and topic in self._sample_topics:
                    yield topic, source, value

    def entries_to_store(self, all_sources: bool) -> Iterable[PersistentEntry]:  # noqa: FBT001 - a callback's only argument
        """Yield the entries to store in a transaction. The first call also yields deletions of obsolete entries of earlier runs.

        Args:
            all_sources: True to yield the entries of all sources; False to yield only the entries of changed sources.
        """
        obsolete, self._obsolete = self._obsolete, []
        yield from (PersistentEntry(name, None) for name in obsolete)
        if all_sources:
            self._registry.mark_all_changed()
        for topic, source, sequence in self._registry.pop_changes(without=self._sample_topics):
            yield PersistentEntry(f"{SEQUENCE_ENTRY_PREFIX}{topic}{source}", sequence)

    def persistent_entry_of_sample_sequences(self) -> PersistentEntry:
        """Return the entry with the sequences of samples. Call this after the last sample of the run."""
        by_topic: dict[str, dict[str, str]] = {}
        for topic, source, sequence in self._registry.newest_sequences(self._sample_topics):
            by_topic.setdefault(topic, {})[source] = sequence
        return PersistentEntry(SAMPLE_SEQUENCES_ENTRY_NAME, by_topic)
