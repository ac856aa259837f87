"""The command that runs all tests: every file once, in several processes, with one summary."""

import os
import signal
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Final

from agent.cli.demo.guest import until
from tests.all import ROOT, find_groups

RUN: Final = (
    "import sys, pathlib, tests.all as a; sys.exit(a.Run(pathlib.Path.cwd(), [[p] for p in sys.argv[1:]]).run(2))"
)
CONFTEST: Final = """
import pytest

@pytest.fixture(scope="session")
def server():
    yield
    open("ends", "a").write("end\\n")
"""


def start(folder: Path, **files: str) -> subprocess.Popen[str]:
    """Start a run of files with these contents, each in a group of its own."""
    (folder / "conftest.py").write_text(CONFTEST)
    (folder / "pytest.ini").write_text("[pytest]\naddopts = -ra\n")
    for name, text in files.items():
        (folder / f"{name}.py").write_text(text)
    return subprocess.Popen(
        [sys.executable, "-c", RUN, *(f"{name}.py" for name in files)],
        cwd=folder,
        env={name: value for name, value in os.environ.items() if not name.startswith("PYTEST")}
        | {"PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        text=True,
    )


def test_each_test_file_is_in_one_group() -> None:
    files = Counter(
        file
        for group in find_groups()
        for path in group
        for file in ([ROOT / path] if path.endswith(".py") else (ROOT / path).rglob("test_*.py"))
    )
    assert files == Counter((ROOT / "tests").rglob("test_*.py"))


def test_all_failures_and_skips_are_in_one_summary(tmp_path: Path) -> None:
    run = start(
        tmp_path,
        test_a="def test_passes(server): pass",
        test_b="def test_fails(server): assert 1 == 2",
        test_c="import pytest\ndef test_skips(): pytest.skip('no disk')\ndef test_passes(): pass",
        test_d="raise OSError('unreadable')",
    )
    out, _ = run.communicate()
    *_, failed, error, summary = (line for line in out.splitlines() if not line.startswith("SKIPPED"))
    assert run.returncode == 1
    assert failed.startswith("FAILED test_b.py::test_fails")
    assert error.startswith("ERROR test_d.py")
    assert "SKIPPED [1] test_c.py:2: no disk" in out
    assert "assert 1 == 2" in out
    assert summary.startswith("1 failed, 1 error, 2 passed, 1 skipped in ")
    assert (tmp_path / "ends").read_text() == "end\n" * 2, "fixtures end with their group"


def test_a_run_whose_workers_end_early_fails(tmp_path: Path) -> None:
    abort = "import os\ndef test_aborts(): os._exit(0)"
    run = start(tmp_path, test_a=abort, test_b=abort, test_c="def test_passes(): pass")
    out, _ = run.communicate()
    assert run.returncode == 1
    assert out.splitlines()[-1] == "not run to the end: test_a.py, test_b.py, test_c.py"


async def test_an_interrupt_ends_the_fixtures_of_all_workers(tmp_path: Path) -> None:
    wait = "import time\ndef test_waits(server):\n    open(__file__ + '.started', 'w')\n    time.sleep(600)"
    run = start(tmp_path, test_a=wait, test_b=wait)
    await until(lambda: len(list(tmp_path.glob("*.started"))) == 2, 120)
    run.send_signal(signal.SIGINT)
    out, _ = run.communicate()
    assert run.returncode == 1
    assert (tmp_path / "ends").read_text() == "end\n" * 2
    assert "KeyboardInterrupt" in out
