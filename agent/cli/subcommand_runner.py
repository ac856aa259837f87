"""Runs a subcommand of `qmp-agent`. A subcommand's module in agent.cli.commands is imported only when the subcommand runs."""

import argparse
import contextlib
import gc
import importlib
import sys
from collections.abc import Iterator

from agent.common.errors import SubcommandError
from agent.config.errors import ConfigError

USAGE_ERROR = 2
"""Exit status for a wrong command line or config."""

IMPORT_GC_THRESHOLDS = (50_000, 20, 100)
"""Thresholds of the garbage collector during imports. Nearly all objects that imports create stay in use."""


def execute_subcommand(parsed: argparse.Namespace) -> int:
    """Run the subcommand in the parsed arguments, and print its errors.

    Args:
        parsed: the parsed arguments.

    Returns:
        The exit status: 0 after success, 1 after a failure, 2 for a wrong config.
    """
    try:
        with _collect_garbage_rarely():
            module = importlib.import_module(f"agent.cli.commands.{parsed.subcommand.replace('-', '_')}")
        return int(module.execute(parsed))
    except ConfigError as error:
        print(*error.problems, sep="\n", file=sys.stderr)
        return USAGE_ERROR
    except SubcommandError as error:
        print(f"qmp-agent: {error}", file=sys.stderr)
        return 1
    except BrokenPipeError:  # the reader has closed the pipe, as in `qmp-agent tail | head`
        with contextlib.suppress(OSError):
            sys.stdout.close()
        return 0


@contextlib.contextmanager
def _collect_garbage_rarely() -> Iterator[None]:
    """Collect garbage rarely while the `with` block runs. Imports take a third longer with the default thresholds."""
    previous = gc.get_threshold()
    gc.set_threshold(*IMPORT_GC_THRESHOLDS)
    try:
        yield
    finally:
        gc.set_threshold(*previous)
