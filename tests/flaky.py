"""Search for tests that fail now and then: `python -m tests.flaky [--runs 20] [--load 8] [PATH ...]`.

Runs the whole suite, or some paths, again and again while busy processes load the machine. Prints each test that ever failed, with
the number of runs in which it did. A run that is aborted, as by a test's timeout, counts for the test that ran last.

As a pytest plugin, this module appends the started and failed tests to the file in the environment variable REPORT.
"""

import argparse
import contextlib
import os
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest

ROOT: Final = Path(__file__).parent.parent
REPORT: Final = "QMP_AGENT_TEST_REPORT"
WHOLE_SUITE: Final = ("-n", "auto", "--dist", "loadfile", "--no-loadscope-reorder")
"""Arguments of pytest that run all tests, as in the Makefile."""


# --- Plugin ---


def _append(word: str, test: str) -> None:
    path = os.environ.get(REPORT)
    if path is not None:
        with Path(path).open("a", encoding="utf-8") as file:
            file.write(f"{word} {os.getpid()} {test}\n")


def pytest_runtest_logstart(nodeid: str) -> None:
    """Record that a test starts."""
    _append("started", nodeid)


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    """Record that a test failed, in its setup, call or teardown."""
    if report.failed:
        _append("failed", report.nodeid)


def pytest_sessionfinish() -> None:
    """Record that a session ended by itself."""
    _append("finished", "-")


# --- Command ---


def failures(report: str) -> set[str]:
    """Return the tests that failed in one run.

    Args:
        report: The lines of the plugin. Each has the process id of its pytest, since the suite runs in several processes.
    """
    failed = set()
    last: dict[str, str] = {}
    for line in report.splitlines():
        word, pid, test = line.split(" ", 2)
        if word == "started":
            last[pid] = test
        elif word == "failed":
            failed.add(test)
        else:
            last.pop(pid, None)
    return failed | {f"{test} (aborted)" for test in last.values()}


@contextlib.contextmanager
def load(processes: int) -> Iterator[None]:
    """Run busy processes during the block. The kernel kills them if this process dies."""
    command = ("setpriv", "--pdeathsig", "KILL", sys.executable, "-c", "while True: pass")
    running = [subprocess.Popen(command) for _ in range(processes)]
    try:
        yield
    finally:
        for process in running:
            process.kill()
        for process in running:
            process.wait()


def run_once(paths: list[str], log: Path) -> tuple[bool, set[str]]:
    """Run the suite, or some paths, once.

    Returns:
        True if it passed, and the tests that failed.
    """
    command = [sys.executable, "-m", "pytest", "-q", *(paths or WHOLE_SUITE)]
    with tempfile.TemporaryDirectory() as folder, log.open("ab") as out:
        report = Path(folder, "report")
        report.touch()
        variables = {
            REPORT: str(report),
            "PYTEST_ADDOPTS": f"{os.environ.get('PYTEST_ADDOPTS', '')} -p tests.flaky",
            "PYTHONPATH": os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH")))),
        }
        ended = subprocess.run(command, cwd=ROOT, env=os.environ | variables, stdout=out, stderr=out, check=False)
        return ended.returncode == 0, failures(report.read_text("utf-8"))


def main() -> int:
    """Run the tests again and again; return 1 if any run failed."""
    parser = argparse.ArgumentParser(prog="python -m tests.flaky", description=__doc__.partition("\n")[0])
    parser.add_argument("--runs", type=int, default=20, help="number of runs; default: 20")
    parser.add_argument("--load", type=int, default=8, help="number of busy processes; default: 8")
    parser.add_argument("--log", type=Path, default=Path("flaky.log"), help="pytest's output; default: flaky.log")
    parser.add_argument("paths", nargs="*", metavar="PATH", help="tests to run; default: the whole suite")
    options = parser.parse_args()
    options.log.unlink(missing_ok=True)
    counts: Counter[str] = Counter()
    bad_runs = 0
    with load(options.load):
        for number in range(1, options.runs + 1):
            passed, failed = run_once(options.paths, options.log)
            bad_runs += not passed
            counts.update(failed)
            texts = ", ".join(sorted(failed)) or ("passed" if passed else f"failed without a test: see {options.log}")
            sys.stderr.write(f"run {number} of {options.runs}: {texts}\n")
    for test, count in counts.most_common():
        sys.stdout.write(f"{count:4} of {options.runs}  {test}\n")
    sys.stdout.write(f"{bad_runs} of {options.runs} runs failed\n")
    return 1 if bad_runs else 0


if __name__ == "__main__":
    sys.exit(main())
