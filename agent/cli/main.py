"""The command `qmp-agent`: parses the command line and runs a subcommand."""

import argparse
import sys
from collections.abc import Callable, Sequence

import agent
from agent.cli import arguments, subcommand_runner

INTERRUPTED_STATUS = 128 + 2
"""Exit status after Ctrl-C: 128 plus the number of SIGINT, as in shells."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the subcommand in the arguments.

    Args:
        argv: the arguments after the program's name; None for the arguments of this process.

    Returns:
        The exit status: 0 after success, 1 after a failure, 2 for a wrong command line or config, 130 after Ctrl-C.
    """
    parsed = _build_parser().parse_args(argv)
    if parsed.subcommand == "version":
        print(_version())
        return 0
    try:
        return subcommand_runner.execute_subcommand(parsed)
    except KeyboardInterrupt:
        return INTERRUPTED_STATUS


SUBCOMMANDS: dict[str, tuple[Callable[[argparse.ArgumentParser], None], str]] = {
    "run": (arguments.add_config_option, "watch the VMs of this host until SIGTERM"),
    "check": (
        arguments.add_check_options,
        "check the config, and the monitors, the journal, the endpoint and the sink in it",
    ),
    "tail": (arguments.add_tail_options, "follow the records of the running agent"),
    "top": (arguments.add_top_options, "show the VMs of the running agent in the terminal"),
    "explain": (arguments.add_explain_options, "explain why a VM is slow or stands still"),
    "rewrite-state": (arguments.add_rewrite_state_options, "make the running agent write the whole state topic again"),
    "journal": (arguments.add_journal_options, "show, export or requeue the records in the journal"),
    "capture": (
        arguments.add_capture_options,
        "capture the QMP traffic of one monitor, for a bug report; secrets are removed",
    ),
    "replay": (arguments.add_replay_options, "replay captured QMP traffic to an agent, and print its records"),
    "doctor": (
        arguments.add_doctor_options,
        "report whether the agent can watch each VM on this host, and which change allows it; run it as root",
    ),
    "schema": (arguments.add_schema_options, "print the JSON schema of records or of the config"),
    "register-schemas": (
        arguments.add_register_schemas_options,
        "register the JSON schemas of records in a schema registry with Confluent's API",
    ),
    "demo": (arguments.add_demo_options, "boot two small guests, watch them and provoke events"),
    "version": (arguments.add_no_options, "print the version"),
}
"""The function that adds the options of a subcommand, and the help text, by the subcommand's name."""


def _version() -> str:
    return f"qmp-agent {agent.__version__}"


class _PrintVersion(argparse.Action):
    """Action of --version. Reads the version only when needed, unlike argparse's own action."""

    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> None:
        print(_version())
        parser.exit()


def _build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="qmp-agent",
        description="Monitors the QEMU virtual machines of this host.",
    )
    parser.add_argument("--version", action=_PrintVersion, nargs=0, help="print the version and exit")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    for name, (add_options, text) in SUBCOMMANDS.items():
        command = commands.add_parser(name, help=text, description=f"{text[0].upper()}{text[1:]}.")
        command.set_defaults(subcommand=name)
        add_options(command)
    return parser


if __name__ == "__main__":
    sys.exit(main())
