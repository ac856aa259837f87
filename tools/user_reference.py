"""Generator of docs/reference/commands.md and docs/reference/config.md from the command line's options and the shipped config.

`python -m tools.user_reference commands` and `... config` write a document to standard output.
"""

import argparse
import sys
from collections import Counter
from pathlib import Path
from typing import Any, Final

from agent.cli.main import SUBCOMMANDS

_CONFIG: Final = Path(__file__).parents[1] / "config/agent.yaml"
_NOTE: Final = "<!-- Generated from the code by `make generate`; a test fails if it is out of date. -->\n"
_SHARED: Final = 4
"""An option of at least this many subcommands is in a separate table."""

_COMMANDS_INTRO: Final = """# Commands

`qmp-agent COMMAND --help` prints the same. The exit status is 0 after success, 1 after a failure, 2 for a wrong command line or config, and
130 after Ctrl-C.
"""

_CONFIG_INTRO: Final = """# Config

The agent reads `/etc/qmp-agent/agent.yaml`. This is `config/agent.yaml`: it has each key with its default and its meaning.
`qmp-agent check` reports mistakes with their lines. `agent/config/agent.schema.json` is the JSON schema, for editors;
`qmp-agent schema config` prints it.
"""


class _RecordingParser(argparse.ArgumentParser):
    """Remembers the options that are added."""

    def __init__(self) -> None:
        self.recorded: list[argparse.Action] = []
        super().__init__(add_help=False)

    def add_argument(self, *args: Any, **kwargs: Any) -> argparse.Action:
        """Add an option, and remember it."""
        action = super().add_argument(*args, **kwargs)
        self.recorded.append(action)
        return action


def commands_document() -> str:
    """Return the text of docs/reference/commands.md, with a section for each subcommand."""
    rows = {name: _option_rows(name) for name in SUBCOMMANDS}
    counts = Counter(row for own in rows.values() for row in own)
    shared = [row for row, count in counts.items() if count >= _SHARED]
    sections = [
        f"## {name}\n\n{text[0].upper()}{text[1:]}.\n{_table([row for row in rows[name] if row not in shared])}"
        for name, (_, text) in SUBCOMMANDS.items()
    ]
    common = "".join(
        f"{row} {', '.join(f'`{name}`' for name in SUBCOMMANDS if row in rows[name])} |\n" for row in shared
    )
    return "\n".join(
        (
            _NOTE,
            _COMMANDS_INTRO,
            *sections,
            f"## Options of several commands\n\n| option | meaning | commands |\n|---|---|---|\n{common}",
        )
    )


def _option_rows(subcommand: str) -> list[str]:
    parser = _RecordingParser()
    SUBCOMMANDS[subcommand][0](parser)
    return [f"| {_usage(action)} | {action.help or ''} |" for action in parser.recorded]


def _usage(action: argparse.Action) -> str:
    choices = "" if action.choices is None else "\\|".join(map(str, action.choices))
    if not action.option_strings:
        return f"`{choices or action.dest.upper()}`"
    value = "" if action.nargs == 0 else f" {choices or action.metavar or action.dest.upper()}"
    return f"`{action.option_strings[0]}{value}`"


def _table(rows: list[str]) -> str:
    return "\n| argument | meaning |\n|---|---|\n" + "".join(f"{row}\n" for row in rows) if rows else ""


def config_document() -> str:
    """Return the text of docs/reference/config.md, with the shipped config."""
    return "\n".join((_NOTE, _CONFIG_INTRO, f"```yaml\n{_CONFIG.read_text('utf-8')}```\n"))


_DOCUMENTS: Final = {"commands": commands_document, "config": config_document}


def main() -> None:
    """Write one document to standard output."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("document", choices=_DOCUMENTS)
    sys.stdout.write(_DOCUMENTS[parser.parse_args().document]())


if __name__ == "__main__":
    main()
