"""Errors about config files."""

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class ConfigProblem:
    """One problem of a config file.

    Attributes:
        file: the path of the file.
        line: the number of the line, from 1; 0 if unknown.
        key: the key, such as `kafka.bootstrap_servers[0]`; empty if the problem concerns the whole file.
        text: what is wrong, and a correct value or the fix.
    """

    file: str
    line: int
    key: str
    text: str

    def __str__(self) -> str:
        place = f"{self.file}:{self.line}" if self.line else self.file
        return f"{place}: {self.key}: {self.text}" if self.key else f"{place}: {self.text}"


class ConfigError(Exception):
    """A config file has problems.

    Attributes:
        problems: all problems of the file.
    """

    def __init__(self, problems: Sequence[ConfigProblem]) -> None:
        super().__init__("\n".join(map(str, problems)))
        self.problems = problems
