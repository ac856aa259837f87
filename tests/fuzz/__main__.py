"""Coverage-guided fuzzing with atheris (libFuzzer): `python -m tests.fuzz TARGET --seconds 60`. New inputs go to .fuzz/TARGET.

An input that breaks an invariant ends the run and is stored there as crash-<hash>. Fix the bug, and add the input to the corpus,
tests/fuzz/corpus/TARGET, which `make test` runs as a whole. `--keep` adds the new inputs that the corpus does not cover yet.
"""

import argparse
import sys
from pathlib import Path

import atheris

with atheris.instrument_imports(include=["agent"]):
    from tests.fuzz.targets import TARGETS

CORPUS = Path(__file__).parent / "corpus"
MAX_BYTES = 8192


def main() -> None:
    """Run the fuzzer; libFuzzer ends the process."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz")
    parser.add_argument("target", choices=TARGETS)
    parser.add_argument("--seconds", type=int, default=60)
    parser.add_argument("--keep", action="store_true", help="only merge new inputs into the corpus, without fuzzing")
    parser.add_argument("arguments", nargs="*", help="after `--`: libFuzzer's own arguments, which replace all others")
    options = parser.parse_args()
    if options.arguments:
        _fuzz(options.target, *options.arguments)
    new, corpus = Path(".fuzz", options.target), CORPUS / options.target
    new.mkdir(parents=True, exist_ok=True)
    run = ["-merge=1", str(corpus), str(new)] if options.keep else [str(new), str(corpus)]
    limits = [f"-max_total_time={options.seconds}", f"-max_len={MAX_BYTES}", "-timeout=10", "-rss_limit_mb=2048"]
    dictionary = [f"-dict={CORPUS}/{options.target}.dict"]
    _fuzz(options.target, *run, *limits, *dictionary, f"-artifact_prefix={new}/")


def _fuzz(target: str, *arguments: str) -> None:
    """Run libFuzzer. To merge, it starts further processes by the program's name, which has to be a script."""
    program = Path(".fuzz", f"{target}-fuzzer")
    program.write_text(f'#!/bin/sh\nexec {sys.executable} -m tests.fuzz {target} -- "$@"\n')
    program.chmod(0o755)
    atheris.Setup([str(program), *arguments], TARGETS[target])
    atheris.Fuzz()


if __name__ == "__main__":
    main()
