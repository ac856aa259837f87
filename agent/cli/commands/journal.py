"""The subcommand `qmp-agent journal`."""

import argparse
import sys

from agent.cli import journal
from agent.common.default_paths import CONFIG_PATH
from agent.config.loader import load_config


def execute(parsed: argparse.Namespace) -> int:
    """Show, export or requeue the records in the journal."""
    directory = load_config(parsed.config or CONFIG_PATH).journal.directory
    match parsed.action:
        case "show":
            for text in journal.describe_journal(directory):
                print(text)
        case "export":
            for body in journal.journal_records_as_json_lines(
                directory, file=parsed.file, dead_letters=parsed.dead_letters
            ):
                sys.stdout.buffer.write(body)
        case "requeue":
            count = journal.requeue_undelivered_records(directory, file=parsed.file)
            print(f"{count} records enqueued; the agent delivers them at its next start")
    return 0
