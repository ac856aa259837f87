"""Whether the guest runs. Asked at attach and when STOP, RESUME and their kin say that it changed."""

from collections.abc import Iterable

from agent.catalogue.metrics import RUNSTATE
from agent.catalogue.model import Reader, Sample
from agent.collectors.base import Answers, Collector, expect
from agent.qmp.commands import Ask

_read = Reader(RUNSTATE)


def _collect(answers: Answers) -> Iterable[Sample]:
    return (Sample(RUNSTATE, (), _read(expect(answers[0], dict))),)


COLLECTOR = Collector("runstate", (RUNSTATE,), lambda _facts: (Ask("query-status"),), _collect)
