"""Command-line options of each subcommand of `qmp-agent`, with the parsers of their values. Pure."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from agent.common.default_paths import CONFIG_PATH
from agent.common.durations_and_sizes import parse_bytes, parse_seconds
from agent.model.record import Severity

if TYPE_CHECKING:
    from agent.alerts.alertmanager_config import AlertmanagerConfig


def add_no_options(_: argparse.ArgumentParser) -> None:
    """Add nothing. The function is for a subcommand without options."""


def add_config_option(command: argparse.ArgumentParser) -> None:
    """Add --config."""
    command.add_argument(
        "--config", type=Path, default=None, metavar="FILE", help=f"the config file; default: {CONFIG_PATH}"
    )


def add_check_options(command: argparse.ArgumentParser) -> None:
    """Add the options of `check`."""
    add_config_option(command)
    command.add_argument("--syntax", action="store_true", help="only validate the config")


def add_tail_options(command: argparse.ArgumentParser) -> None:
    """Add the options of `tail`."""
    _add_endpoint_options(command)
    command.add_argument("--vm", default="", help="only this VM, by name or UUID")
    command.add_argument(
        "--type", default="", help="only record types with this prefix: event, sample.block, alert, vm, ..."
    )
    command.add_argument(
        "--severity",
        default="debug",
        choices=[s.label for s in Severity],
        help="only records of this severity or higher",
    )
    command.add_argument("--json", action="store_true", help="print whole records, one per line")


def add_top_options(command: argparse.ArgumentParser) -> None:
    """Add the options of `top`."""
    _add_endpoint_options(command)
    command.add_argument(
        "--interval", type=parse_duration, default=2.0, metavar="TIME", help="refresh interval, such as 5s"
    )
    command.add_argument("--vm", default="", help="start with the details of this VM, by name or UUID")
    command.add_argument(
        "--view",
        choices=("vms", "storage", "alerts", "monitors", "host"),
        default="vms",
        help="the list to show; default: vms",
    )
    command.add_argument(
        "--filter", default="", metavar="TEXT", help="show the VMs that match, such as 'web state:paused alert:any'"
    )
    command.add_argument(
        "--sort",
        default="cpu",
        metavar="COLUMN",
        help="sort by this column, such as write; --sort=-write reverses the order",
    )
    command.add_argument("--once", action="store_true", help="print the list, or with --vm the details, and exit")
    command.add_argument("--json", action="store_true", help="with --once: print JSON")


def add_explain_options(command: argparse.ArgumentParser) -> None:
    """Add the options of `explain`."""
    _add_endpoint_options(command)
    command.add_argument("vm", help="name or UUID of the VM")
    command.add_argument(
        "--json", action="store_true", help="print JSON; docs/reference/explain.md describes its fields"
    )


def add_rewrite_state_options(command: argparse.ArgumentParser) -> None:
    """Add the options of `rewrite-state`."""
    _add_endpoint_options(command)


def add_journal_options(command: argparse.ArgumentParser) -> None:
    """Add the options of `journal`."""
    add_config_option(command)
    command.add_argument(
        "action",
        nargs="?",
        choices=("show", "export", "requeue"),
        default="show",
        help="show: print a summary (default); export: print records as JSON lines; requeue: deliver rejected records again",
    )
    command.add_argument(
        "--dead-letters",
        action="store_true",
        help="export the records that Kafka rejected, instead of the waiting records; `requeue` needs no such option",
    )
    command.add_argument("--file", help="name of a quarantined file in the journal's directory, to export or requeue")


def add_capture_options(command: argparse.ArgumentParser) -> None:
    """Add the options of `capture`."""
    add_config_option(command)
    command.add_argument("monitor", help="path of a socket, or tcp:host:port; no other client may be connected to it")
    command.add_argument("file", type=Path, help="output file; only you can read it")
    command.add_argument(
        "--duration",
        dest="seconds",
        type=parse_duration,
        default=60.0,
        metavar="TIME",
        help="maximum duration; default: 60s",
    )
    command.add_argument(
        "--max-size", type=parse_size, default=64 << 20, metavar="SIZE", help="maximum size of the file; default: 64MiB"
    )


def add_replay_options(command: argparse.ArgumentParser) -> None:
    """Add the options of `replay`."""
    add_config_option(command)
    command.add_argument("file", type=Path, help="file from `capture`")
    command.add_argument(
        "--speed", type=parse_speed, default=1.0, metavar="N", help="replay N times as fast; default: 1"
    )
    command.add_argument(
        "--listen", default="127.0.0.1:0", metavar="ADDRESS", help="address of the page and /metrics during the replay"
    )


def add_doctor_options(command: argparse.ArgumentParser) -> None:
    """Add the options of `doctor`."""
    add_config_option(command)
    command.add_argument("--vm", default="*", help="only VMs whose name or UUID matches this pattern")
    command.add_argument(
        "--user",
        help="user whose permissions to check; default: the user of the running agent, or qmp-agent if none runs",
    )
    command.add_argument(
        "--json", action="store_true", help="print one JSON array; docs/reference/doctor.md describes its fields"
    )


def add_schema_options(command: argparse.ArgumentParser) -> None:
    """Add the options of `schema`."""
    command.add_argument(
        "of", choices=("record", "config", "data"), help="data: one JSON object with a schema for each record type"
    )


def add_register_schemas_options(command: argparse.ArgumentParser) -> None:
    """Add the options of `register-schemas`."""
    command.add_argument("url", help="URL of the registry's API, such as http://registry:8081")
    _add_credentials_options(command, "the registry")


def add_demo_options(command: argparse.ArgumentParser) -> None:
    """Add the options of `demo`."""
    command.add_argument(
        "--duration", dest="seconds", type=parse_duration, metavar="TIME", help="end after this time, such as 30s"
    )
    command.add_argument("--output", type=Path, metavar="FILE", help="write every record to this file, one per line")
    command.add_argument(
        "--alertmanager", type=parse_alertmanager_url, metavar="URL", help="send alerts to this Alertmanager"
    )


def _add_endpoint_options(command: argparse.ArgumentParser) -> None:
    """Add the options for connecting to the agent's endpoint."""
    add_config_option(command)
    command.add_argument(
        "--url", help="URL of the agent's endpoint; default: from the config, or http://127.0.0.1:9179"
    )
    _add_credentials_options(command, "the endpoint")


def _add_credentials_options(command: argparse.ArgumentParser, server: str) -> None:
    """Add the options for the credentials that an HTTP client presents to a server."""
    command.add_argument("--ca", type=Path, metavar="FILE", help=f"certificate authorities of {server}")
    command.add_argument("--cert", type=Path, metavar="FILE", help="the client's certificate and its key")
    command.add_argument("--user", default="", help=f"user name for {server}")
    command.add_argument("--password-file", type=Path, metavar="FILE", help="file whose first line is the password")


def parse_duration(text: str) -> float:
    """Parse a duration such as `30s`, or a number of seconds. Return seconds.

    Raises:
        argparse.ArgumentTypeError: the text has another form.
    """
    try:
        return parse_seconds(float(text) if text.isdecimal() else text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def parse_size(text: str) -> int:
    """Parse a size such as `64MiB`, or a number of bytes. Return bytes.

    Raises:
        argparse.ArgumentTypeError: the text has another form.
    """
    try:
        return parse_bytes(int(text) if text.isdecimal() else text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def parse_speed(text: str) -> float:
    """Parse a speed factor.

    Raises:
        argparse.ArgumentTypeError: the text is not a number, or the number is out of range.
    """
    try:
        speed = float(text)
    except ValueError:
        speed = 0.0
    if not 0 < speed <= 1000:
        raise argparse.ArgumentTypeError("should be a number of more than 0 and at most 1000")
    return speed


def parse_alertmanager_url(text: str) -> "AlertmanagerConfig":
    """Parse the URL of an Alertmanager.

    Raises:
        argparse.ArgumentTypeError: the text is not a URL.
    """
    from agent.alerts.alertmanager_config import AlertmanagerConfig  # noqa: PLC0415 - importing pydantic takes longer than `version` runs

    try:
        return AlertmanagerConfig(urls=[text])
    except ValueError as error:
        raise argparse.ArgumentTypeError("should be a URL, such as http://127.0.0.1:9093") from error
