"""Fuzzing by coverage with atheris (libFuzzer): `python -m tests.fuzz TARGET --seconds 60`; what it finds anew goes into .fuzz/TARGET.

An input that breaks a promise ends it, and is left there as crash-<hash>: mend what it shows, and add it to tests/fuzz/corpus/TARGET,
which `make test` runs whole. `--keep` adds to that folder what the run has found and the corpus does not reach yet.
"""

import argparse
import sys
from pathlib import Path

import atheris

with atheris.instrument_imports(include=["agent"]):
    from tests.fuzz.targets import TARGETS

CORPUS = Path(__file__).parent / "corpus"
MOST_BYTES = 8192


def main() -> None:
    """Run; libFuzzer ends the process."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz")
    parser.add_argument("target", choices=TARGETS)
    parser.add_argument("--seconds", type=int, default=60)
    parser.add_argument("--keep", action="store_true", help="add what was found to the corpus, and nothing else")
    parser.add_argument("given", nargs="*", help="after `--`: libFuzzer's own arguments, and no other")
    options = parser.parse_args()
    if options.given:
        _fuzz(options.target, *options.given)
    found, corpus = Path(".fuzz", options.target), CORPUS / options.target
    found.mkdir(parents=True, exist_ok=True)
    run = ["-merge=1", str(corpus), str(found)] if options.keep else [str(found), str(corpus)]
    limits = [f"-max_total_time={options.seconds}", f"-max_len={MOST_BYTES}", "-timeout=10", "-rss_limit_mb=2048"]
    words = [f"-dict={CORPUS}/{options.target}.dict"]
    _fuzz(options.target, *run, *limits, *words, f"-artifact_prefix={found}/")


def _fuzz(target: str, *arguments: str) -> None:
    """Run libFuzzer, which starts its like by the program's name where it merges."""
    again = Path(".fuzz", f"{target}-again")
    again.write_text(f'#!/bin/sh\nexec {sys.executable} -m tests.fuzz {target} -- "$@"\n')
    again.chmod(0o755)
    atheris.Setup([str(again), *arguments], TARGETS[target])
    atheris.Fuzz()


if __name__ == "__main__":
    main()
