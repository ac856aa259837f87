"""Small values that the journal keeps across restarts of the agent. Pure."""

import itertools
from dataclasses import dataclass, field
from typing import Any

_entry_versions = itertools.count(1)


@dataclass(frozen=True, slots=True)
class PersistentEntry:
    """A named JSON value that the journal keeps across restarts of the agent. An entry replaces an older entry of the same name.

    Attributes:
        name: the entry's name.
        value: a JSON value. None deletes the entry.
        version: a number that rises with each new entry in one run of the agent.
    """

    name: str
    value: Any
    version: int = field(default_factory=lambda: next(_entry_versions))
