"""Unit tests with other Pythons, and with the oldest dependencies that pyproject.toml allows: `python -m tests.versions [3.12 ...]`.

uv builds each environment in a temporary directory. An interpreter that this machine lacks is reported, and does not count as a
failure. The exit status is 1 if a test failed or an environment cannot be built.
"""

import argparse
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).parent.parent
PYTHONS: Final = ("3.11", "3.12", "3.13", "3.14")
OLDEST: Final = PYTHONS[0]
"""The Python whose second environment has the oldest dependencies."""
UV: Final = (sys.executable, "-m", "uv")
TESTS: Final = (
    "-q",
    "-n",
    "auto",
    "--dist",
    "loadfile",
    "--no-loadscope-reorder",
    "-p",
    "no:cacheprovider",
    "tests/unit",
)


def main() -> int:
    """Run the unit tests in each environment and print a line for each."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("pythons", nargs="*", default=PYTHONS, help=f"versions of Python; default: {' '.join(PYTHONS)}")
    pythons = parser.parse_args().pythons
    results = []
    with tempfile.TemporaryDirectory(prefix="qmp-versions-") as folder:
        for python in pythons:
            for oldest in (False, True) if python == OLDEST else (False,):
                name = f"Python {python}, {'oldest' if oldest else 'newest'} dependencies"
                sys.stderr.write(f"=== {name}\n")
                interpreter = find_interpreter(python)
                if interpreter is None:
                    results.append((name, "not tested: this machine lacks the interpreter"))
                    continue
                environment = Path(folder) / f"{python}-{oldest}"
                passed = build(environment, interpreter, oldest=oldest) and run_tests(environment)
                results.append((name, "passed" if passed else "FAILED"))
                shutil.rmtree(environment, ignore_errors=True)
    for name, result in results:
        sys.stdout.write(f"{name}: {result}\n")
    return int(any(result == "FAILED" for _, result in results))


def find_interpreter(python: str) -> str | None:
    """Return the path of an installed interpreter of a version such as `3.12`; None if there is none.

    With pyenv, PYENV_VERSION selects the interpreters that are found, as in `PYENV_VERSION=3.12.1:3.13.0`.
    """
    command = (*UV, "python", "find", "--no-project", "--no-python-downloads", python)
    found = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    return found.stdout.strip() if found.returncode == 0 else None


def build(environment: Path, interpreter: str, *, oldest: bool) -> bool:
    """Make an environment with the agent and the tools of its tests. Return whether that succeeded.

    Args:
        environment: the directory of the new environment.
        interpreter: path of the interpreter.
        oldest: whether each dependency of the agent has the lowest version that pyproject.toml allows. The tests' tools are the newest.
    """
    requirements = environment / "requirements.txt"
    python = environment / "bin" / "python"
    resolution = "lowest-direct" if oldest else "highest"
    return all(
        subprocess.run((*UV, *arguments), cwd=ROOT, check=False).returncode == 0
        for arguments in (
            ("venv", "--quiet", "--python", interpreter, environment),
            (
                "pip",
                "compile",
                "--quiet",
                "--python",
                python,
                "--resolution",
                resolution,
                "pyproject.toml",
                "-o",
                requirements,
            ),
            ("pip", "install", "--quiet", "--python", python, "-r", requirements, "--group", "dev", "-e", "."),
        )
    )


def run_tests(environment: Path) -> bool:
    """Run the unit tests. Return whether all passed."""
    return subprocess.run([environment / "bin" / "pytest", *TESTS], cwd=ROOT, check=False).returncode == 0


if __name__ == "__main__":
    sys.exit(main())
