"""Mutation tests: `python -m tests.mutants [AREA ...]`.

Changes the code of an area in many small ways, one at a time, and runs the area's tests on each change. A change that no test notices is
a survivor: it shows a behaviour without a test, or it has no effect. Prints each survivor as a diff, and a table of all areas.

mutmut makes the changes and runs the tests. It works in `.mutants/AREA` and keeps its results there, so that a later run repeats only what
has changed. mutmut changes no property and no statement of a module outside its functions, such as a table.

The first runs judged a part of the changes of three areas, those with the fastest tests first. The changes that no test notices now have no
effect, or change a text for people.

| area | changes judged | noticed before | noticed now |
|---|---|---|---|
| record | 117 of 441 | 99 (85 %) | 113 (97 %) |
| qmp | 188 of 349 | 172 (91 %) | 185 (98 %) |
| states | 30 of 403 | 24 (80 %) | 29 (97 %) |

In conditions and thresholds, 46 changes were chosen by hand. The tests did not notice 34 of them; they notice 28 of these now.
"""

import argparse
import os
import subprocess
import sys
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).parent.parent
WORK: Final = ROOT / ".mutants"
MUTMUT: Final = Path(sys.executable).parent / "mutmut"


@dataclass(frozen=True, slots=True)
class Area:
    """A part of the code, and the tests that judge it.

    Attributes:
        modules: The files to change, below `agent`.
        tests: The tests to run, below `tests/unit`.
    """

    modules: tuple[str, ...]
    tests: tuple[str, ...]


AREAS: Final = {
    "record": Area(
        ("model/record.py", "model/json_encoding.py", "model/sequences.py"),
        ("model/test_record.py", "model/test_sequences.py", "model/test_cloudevents_conformance.py"),
    ),
    "qmp": Area(
        ("qmp/protocol.py",),
        ("qmp/test_protocol.py", "qmp/test_messages.py", "qmp/test_unreadable_messages.py"),
    ),
    "states": Area(
        (
            "alerts/write_threshold_slot.py",
            "session/disk_histogram_state_machine.py",
            "session/migration_state.py",
            "session/event_coalescer.py",
            "session/scheduler.py",
        ),
        (
            "alerts/test_write_threshold_slot.py",
            "session/test_disk_histogram_state_machine.py",
            "session/test_migration_state.py",
            "session/test_event_coalescer.py",
            "session/test_scheduler.py",
        ),
    ),
    "conditions": Area(
        (
            "alerts/rules/comparison.py",
            "alerts/rules/event_rule_evaluator.py",
            "alerts/rules/sample_rule_evaluator.py",
        ),
        ("alerts/test_sample_rules.py", "alerts/test_event_rules.py", "alerts/test_rule_details.py"),
    ),
    "thresholds": Area(
        ("alerts/threshold_tracker.py", "alerts/disk_levels.py", "alerts/pool_growth.py"),
        (
            "alerts/test_threshold_tracker.py",
            "alerts/test_threshold_tracker_changes.py",
            "alerts/test_disk_levels.py",
            "alerts/test_pool_growth.py",
            "alerts/test_pool_usage.py",
            "alerts/test_unchanged_polls.py",
            "alerts/test_disk_limits.py",
        ),
    ),
    "queue": Area(
        (
            "delivery/queue.py",
            "delivery/disk_backlog.py",
            "delivery/drops.py",
            "delivery/record_state_machine.py",
            "delivery/memory_tail.py",
        ),
        ("delivery/test_queue_model.py", "delivery/test_queue_contents.py"),
    ),
}
"""The areas by name. Their code does no I/O of its own, so the tests judge most mutants in a fraction of a second."""

UNCHANGED_LINES: Final = (r"_log\.", r"raise \w+")
"""Lines with texts for people. The tests do not repeat such a text."""
SLOW_TESTS: Final = "not takes_time and not take_no_more_memory and not real"
"""Measurements of time and memory are left out, and tests with a real QEMU: they take longer than all other tests together."""

Outcomes = Counter[str]
"""The number of mutants by mutmut's word for the outcome, such as `killed` or `survived`."""


def settings(area: Area) -> str:
    """Return mutmut's settings for an area, as the text of `setup.cfg`."""
    values = {
        "source_paths": ["agent"],
        "only_mutate": [f"agent/{module}" for module in area.modules],
        "do_not_mutate_patterns": UNCHANGED_LINES,
        "pytest_add_cli_args_test_selection": ["-k", SLOW_TESTS, *(f"tests/unit/{test}" for test in area.tests)],
        "pytest_add_cli_args": ["-p", "no:cacheprovider"],
        "also_copy": ["config", "deploy", "docs"],
        "process_isolation": ["forkserver"],  # the worker of a mutant inherits no thread and no event loop of a test
        "use_git_change_detection": ["false"],
        "timeout_constant": ["10"],
    }
    lines = [
        f"{key} = {each[0]}" if len(each) == 1 else "\n  ".join((f"{key} =", *each)) for key, each in values.items()
    ]
    return "\n".join(["[mutmut]", *lines, ""])


def prepare(name: str) -> Path:
    """Return the folder in which mutmut works on an area: links to the project, and settings."""
    folder = WORK / name
    folder.mkdir(parents=True, exist_ok=True)
    for entry in ("agent", "tests", "config", "dashboards", "deploy", "docs", "tools", "pyproject.toml"):
        link = folder / entry
        link.unlink(missing_ok=True)
        link.symlink_to(ROOT / entry)
    (folder / "setup.cfg").write_text(settings(AREAS[name]), "utf-8")
    return folder


def mutmut(folder: Path, *arguments: str) -> str:
    """Run mutmut in an area's folder; return what it printed. `mutmut.log` shows the progress.

    Raises:
        SystemExit: mutmut failed, such as when a test fails without any change.
    """
    log = folder / "mutmut.log"
    with log.open("w", encoding="utf-8") as out:
        variables = os.environ | {"HYPOTHESIS_PROFILE": "mutants"}
        ended = subprocess.run([MUTMUT, *arguments], cwd=folder, env=variables, stdout=out, stderr=out, check=False)
    if ended.returncode:
        raise SystemExit(f"mutmut {' '.join(arguments)} failed: see {log}")
    return log.read_text("utf-8")


def outcomes(results: str) -> Iterator[tuple[str, str]]:
    """Yield the name and the outcome of each mutant in the output of `mutmut results`."""
    for line in results.splitlines():
        name, separator, outcome = line.strip().rpartition(": ")
        if separator and "__mutmut_" in name:
            yield name, outcome


def judge(name: str, workers: int) -> Outcomes:
    """Judge an area's mutants, and print its survivors as diffs."""
    folder = prepare(name)
    mutmut(folder, "run", "--max-children", str(workers))
    counts: Outcomes = Counter()
    for mutant, outcome in outcomes(mutmut(folder, "results", "--all", "true")):
        counts[outcome] += 1
        if outcome == "survived":
            sys.stdout.write(mutmut(folder, "show", mutant))
    return counts


def table(areas: Iterable[tuple[str, Outcomes]]) -> Iterator[str]:
    """Yield the lines of the table of areas. A mutant that made a test hang counts as killed; one that no test reaches as a survivor."""
    yield f"{'area':12} mutants  killed  survivors  killed share"
    for name, counts in areas:
        killed, total = counts["killed"] + counts["timeout"], counts.total()
        yield f"{name:12} {total:7} {killed:7} {total - killed:10} {killed / max(total, 1):13.1%}"


def main() -> int:
    """Judge the mutants of some or all areas, and print the survivors and the table."""
    parser = argparse.ArgumentParser(prog="python -m tests.mutants", description=__doc__.partition("\n")[0])
    parser.add_argument("--workers", type=int, default=1, help="number of mutants to judge at once; default: 1")
    parser.add_argument("areas", nargs="*", metavar="AREA", help=f"default: all of {', '.join(AREAS)}")
    options = parser.parse_args()
    if unknown := set(options.areas) - AREAS.keys():
        parser.error(f"no such area: {', '.join(sorted(unknown))}")
    judged = [(name, judge(name, options.workers)) for name in options.areas or AREAS]
    sys.stdout.write("\n".join([*table(judged), ""]))
    return 0


if __name__ == "__main__":
    sys.exit(main())
