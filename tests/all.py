"""Run all tests once: `python -m tests.all [--workers 4]`.

Several pytest processes, the workers, take groups of test files from one queue until it is empty. A group is a file or a directory, or
files that share a server which is slow to start. Each worker has a log and a pytest cache of its own in `.pytest_cache`.

As a pytest plugin, this module makes a pytest process a worker.
"""

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import zip_longest
from pathlib import Path
from typing import Any, Final, TextIO

import pytest

ROOT: Final = Path(__file__).parent.parent
CACHE: Final = Path(".pytest_cache")
QUEUE: Final = "QMP_AGENT_TEST_QUEUE"
"""Environment variable of a worker: a directory. It has the list of all groups, and a file for each group that was taken."""
RESULTS: Final = "QMP_AGENT_TEST_RESULTS"
"""Environment variable of a worker: the file descriptor to which the worker writes a line of JSON for each group that it has run."""

LONGEST_FIRST: Final[Sequence[Sequence[str]]] = (
    ("tests/integration/kafka",),
    ("tests/e2e/test_alert_kill_points.py", "tests/e2e/test_kafka_pipeline.py", "tests/e2e/test_resync.py"),
    (
        "tests/e2e/test_dashboard_queries.py",
        "tests/e2e/test_deploy_stack.py",
        "tests/integration/flink/test_flink_jobs.py",
        "tests/integration/test_lab.py",
    ),
    ("tests/integration/qemu/test_disk_alerts.py",),
    ("tests/e2e/test_page.py",),
    ("tests/integration/qemu/test_stalled_disks.py",),
    ("tests/integration/libvirt/test_guest_agent_of_domain.py",),
    ("tests/chaos",),
    ("tests/e2e/test_qemu_versions.py",),
    ("tests/e2e/test_page_accessibility.py",),
    ("tests/e2e/test_page_rendering.py",),
    ("tests/integration/libvirt/test_domain_lifecycle.py",),
    ("tests/integration/cloudevents/test_sdks.py",),
)
"""The groups that take longest, so that no worker is left with a long one at the end. Each of the first three shares a Kafka broker."""

_WHOLE_DIRECTORIES: Final = ("tests/unit/*", "tests/e2e/hostile", "tests/fuzz", "tests/bench")
_OUTCOMES: Final = ("failed", "error", "passed", "skipped", "xfailed", "xpassed")
_SUMMARY_LINES: Final = tuple(f"{outcome} " for outcome in ("FAILED", "ERROR", "SKIPPED", "XFAIL", "XPASS"))
_GROUPS: Final = "groups.json"
_NOTHING_LEFT: Final = pytest.ExitCode.NO_TESTS_COLLECTED


def find_groups() -> list[Sequence[str]]:
    """Return the groups of all test files, as paths below the root. Each file is in one group."""
    named = [ROOT / path for group in LONGEST_FIRST for path in group]
    rest: dict[Path, None] = {}
    for file in sorted((ROOT / "tests").rglob("test_*.py")):
        if not any(file.is_relative_to(path) for path in named):
            directory = next(
                (path for path in file.parents if any(path.match(glob) for glob in _WHOLE_DIRECTORIES)), file
            )
            rest[directory] = None
    return [*LONGEST_FIRST, *((path.relative_to(ROOT).as_posix(),) for path in rest)]


# --- Plugin ---


def _take_groups() -> Iterator[Sequence[str]]:
    """Yield the groups that this worker takes. No other worker gets them."""
    queue = Path(os.environ[QUEUE])
    for number, group in enumerate(json.loads((queue / _GROUPS).read_text("utf-8"))):
        try:
            (queue / str(number)).touch(exist_ok=False)
        except FileExistsError:
            continue
        yield group


def _count_outcomes(session: pytest.Session) -> Counter[str]:
    reporter = session.config.pluginmanager.get_plugin("terminalreporter")
    stats: dict[str, list[object]] = reporter.stats if reporter is not None else {}
    return Counter({outcome: len(stats.get(outcome, ())) for outcome in _OUTCOMES})


def _run_group(session: pytest.Session, group: Sequence[str]) -> None:
    """Collect and run the tests of a group. All fixtures end with the group."""
    items = session.perform_collect(group)
    for item, following in zip_longest(items, items[1:]):
        session.config.hook.pytest_runtest_protocol(item=item, nextitem=following)
        if session.shouldfail:
            raise session.Failed(session.shouldfail)
        if session.shouldstop:
            raise session.Interrupted(session.shouldstop)


def pytest_collection() -> bool | None:
    """Collect nothing at the start: a worker collects the files of a group when it takes it."""
    return True if QUEUE in os.environ else None


def pytest_runtestloop(session: pytest.Session) -> bool | None:
    """Run groups until the queue is empty."""
    if QUEUE not in os.environ:
        return None
    results = int(os.environ[RESULTS])
    os.set_inheritable(results, False)  # noqa: FBT003 - the function has no keyword
    tests = 0
    for group in _take_groups():
        before, begin = _count_outcomes(session), time.monotonic()
        _run_group(session, group)
        tests += session.testscollected
        counts = _count_outcomes(session) - before
        line = {"group": group, "seconds": time.monotonic() - begin, "counts": counts}
        os.write(results, json.dumps(line).encode() + b"\n")
    session.testscollected = tests
    return True


# --- Command ---


class Run:
    """A run of groups by several workers.

    Attributes:
        root: The directory that the groups are below.
        groups: The groups in the order in which they are taken.
        counts: The number of tests with each outcome.
    """

    def __init__(self, root: Path, groups: Sequence[Sequence[str]]) -> None:
        self.root = root
        self.groups = [list(group) for group in groups]
        self.counts: Counter[str] = Counter()
        self._finished: list[Sequence[str]] = []
        self._workers: list[subprocess.Popen[bytes]] = []

    def run(self, workers: int) -> int:
        """Run all tests and print their results. Return 0 if all have passed."""
        begin = time.monotonic()
        # A shell starts background commands with SIGINT ignored, which the agents under test would inherit.
        signal.signal(signal.SIGINT, signal.default_int_handler)
        with tempfile.TemporaryDirectory(prefix="qmp-tests-") as queue:
            Path(queue, _GROUPS).write_text(json.dumps(self.groups), "utf-8")
            try:
                with self._start_workers(workers, queue) as results:
                    self._print_results(results)
                statuses = [worker.wait() for worker in self._workers]
            except KeyboardInterrupt:
                for worker in self._workers:
                    worker.send_signal(signal.SIGINT)
                statuses = [worker.wait() for worker in self._workers]
        self._print_logs(statuses)
        sys.stdout.write(f"{_text(self.counts)} in {time.monotonic() - begin:.0f} s\n")
        left = [" ".join(group) for group in self.groups if group not in self._finished]
        if left:
            sys.stdout.write(f"not run to the end: {', '.join(left)}\n")
        return 0 if not left and all(status in (0, _NOTHING_LEFT) for status in statuses) else 1

    def _start_workers(self, count: int, queue: str) -> TextIO:
        """Start the workers. Return the stream of their results, which ends when the last worker ends."""
        (self.root / CACHE).mkdir(exist_ok=True)
        reader, writer = os.pipe()
        try:
            for number in range(count):
                self._workers.append(self._start_worker(number, queue, writer))
        finally:
            os.close(writer)
        return os.fdopen(reader, encoding="utf-8")

    def _start_worker(self, number: int, queue: str, results: int) -> subprocess.Popen[bytes]:
        """Start a worker. It is interrupted if this process ends first.

        It has a process group of its own, so that Ctrl-C reaches it once, through this process.
        """
        command = (
            *("setpriv", "--pdeathsig", "INT", sys.executable, "-m", "pytest", "-p", "tests.all"),
            *("-o", f"cache_dir={CACHE / f'worker{number}'}", "-o", "console_output_style=classic"),
        )
        with self._log(number).open("wb") as log:
            return subprocess.Popen(
                command,
                cwd=self.root,
                env=os.environ | {QUEUE: queue, RESULTS: str(results)},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                pass_fds=[results],
                process_group=0,
            )

    def _log(self, worker: int) -> Path:
        return self.root / CACHE / f"worker{worker}.log"

    def _print_results(self, results: TextIO) -> None:
        """Print a line for each group when it ends."""
        for number, line in enumerate(results, 1):
            result: dict[str, Any] = json.loads(line)
            counts = Counter(result["counts"])
            self._finished.append(result["group"])
            self.counts += counts
            group = f"{' '.join(result['group'])}: {_text(counts)}"
            sys.stdout.write(f"{number:3}/{len(self.groups)} {result['seconds']:6.1f} s  {group}\n")
            sys.stdout.flush()

    def _print_logs(self, statuses: Sequence[int]) -> None:
        """Print the logs of the workers that failed, and the tests that failed or were skipped in any worker."""
        summary = []
        for number, status in enumerate(statuses):
            log = self._log(number).read_text("utf-8", "replace")
            if status not in (0, _NOTHING_LEFT):
                sys.stdout.write(f"\n{log}")
            lines = log.rpartition("short test summary info")[2].splitlines()
            summary += [line for line in lines if line.startswith(_SUMMARY_LINES)]
        sys.stdout.write("".join(f"{line}\n" for line in ("", *sorted(summary, reverse=True))))


def _text(counts: Counter[str]) -> str:
    return ", ".join(f"{counts[outcome]} {outcome}" for outcome in _OUTCOMES if counts[outcome]) or "no tests"


def main() -> int:
    """Run all tests; return the exit status."""
    parser = argparse.ArgumentParser(prog="python -m tests.all", description=__doc__.partition("\n")[0])
    workers = 2 * (os.cpu_count() or 1)
    parser.add_argument(
        "--workers", type=int, default=workers, help="number of pytest processes; default: two for each processor"
    )
    options = parser.parse_args()
    return Run(ROOT, find_groups()).run(options.workers)


if __name__ == "__main__":
    sys.exit(main())
