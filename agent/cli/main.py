"""The command `qmp-agent`."""

import argparse
import asyncio
import contextlib
import dataclasses
import faulthandler
import json
import os
import sys
import threading
from collections.abc import Callable, Coroutine, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import uvloop

from agent import __version__
from agent.app.agent import run
from agent.cli.http_client import EndpointCredentials
from agent.common.config_types import expand
from agent.common.errors import CommandFailedError
from agent.common.units import parse_bytes, parse_seconds
from agent.config.loader import DEFAULT_PATH, ConfigError, load
from agent.config.model import AlertmanagerConfig, Config, WebConfig
from agent.http.web_config import EndpointError, LoadedWebConfig
from agent.model.record import Severity
from agent.monitors import DialConfig
from agent.runtime.logging import configure_logging

USAGE_ERROR = 2
LINGER_SECONDS = 2.0
"""How long an agent that has ended waits for its threads."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a subcommand and return the exit status: 0 done, 1 failed, 2 the command line or the config is wrong."""
    parsed = _parser().parse_args(arguments)
    handler: Callable[[argparse.Namespace], int] = parsed.handler
    try:
        return handler(parsed)
    except ConfigError as error:
        print(*error.problems, sep="\n", file=sys.stderr)
        return USAGE_ERROR
    except CommandFailedError as error:
        print(f"qmp-agent: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:  # `qmp-agent tail | head` has had enough
        with contextlib.suppress(OSError):
            sys.stdout.close()
        return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="qmp-agent", description="Watches every QEMU on this host and tells Kafka, Prometheus and people."
    )
    parser.add_argument("--version", action="version", version=f"qmp-agent {__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    _config_option(_command(commands, "run", _run, "watch this host's VMs until told to stop"))

    command = _command(
        commands, "check", _check, "say what is wrong with the config, then try the monitors and the way out"
    )
    _config_option(command)

    command.add_argument("--syntax", action="store_true", help="only read the config; try nothing")

    command = _command(commands, "tail", _tail, "show the records of the running agent as they come")
    _config_option(command)
    command.add_argument(
        "--url", help="the agent's endpoint; by default what the config says, or else http://127.0.0.1:9179"
    )
    _visitor_options(command)
    command.add_argument("--vm", default="", help="only this VM, by name or UUID")
    command.add_argument("--type", default="", help="only types that begin so: event, sample.block, alert, vm, ...")
    command.add_argument(
        "--severity", default="debug", choices=[s.label for s in Severity], help="only these and worse"
    )
    command.add_argument("--json", action="store_true", help="whole records, one a line")

    command = _command(commands, "top", _top, "show this host's VMs at the terminal, out of the running agent")
    _config_option(command)
    command.add_argument("--url", help="as for tail")
    _visitor_options(command)
    command.add_argument(
        "--interval", type=_duration, default=2.0, metavar="TIME", help="how often to look, such as 5s"
    )
    command.add_argument("--vm", default="", help="begin with this VM in detail, by name or UUID")
    command.add_argument("--once", action="store_true", help="print a table, or with --vm that VM, and end")

    command = _command(
        commands, "journal", _journal, "show what waits in the journal, take it out, or put it back to be delivered"
    )
    _config_option(command)
    command.add_argument("action", nargs="?", choices=("show", "export", "replay"), default="show")
    command.add_argument(
        "--dead-letters",
        action="store_true",
        help="export: the records that Kafka refused; replay puts those back in any case",
    )
    command.add_argument(
        "--file", help="export, replay: a damaged file that was set aside, by its name in the journal's folder"
    )

    _add_tools(commands)
    _command(commands, "version", _version, "print the version")
    return parser


def _add_tools(commands: Any) -> None:
    """Add what needs no running agent."""
    command = _command(
        commands, "record", _record, "record what one monitor says, for a bug report; secrets are removed"
    )
    _config_option(command)
    command.add_argument("monitor", help="a socket's path, or tcp:host:port; no other client may hold it")
    command.add_argument("file", type=Path, help="where to; only you may read it")
    command.add_argument(
        "--duration", dest="seconds", type=_duration, default=60.0, metavar="TIME", help="by default 60s"
    )
    command.add_argument("--max-size", type=_size, default=64 << 20, metavar="SIZE", help="at most, by default 64MiB")

    command = _command(commands, "replay", _replay, "have an agent watch what was recorded, and print its records")
    _config_option(command)
    command.add_argument("file", type=Path, help="what `record` wrote")
    command.add_argument("--speed", type=_speed, default=1.0, metavar="N", help="so many times as fast")
    command.add_argument(
        "--listen", default="127.0.0.1:0", metavar="ADDRESS", help="where to show the page and /metrics meanwhile"
    )

    command = _command(
        commands, "doctor", _doctor, "say of every VM on this host whether and how it can be watched; best as root"
    )
    _config_option(command)
    command.add_argument("--vm", default="*", help="only these, by name or UUID, or a pattern")
    command.add_argument(
        "--user", help="whose permissions are looked at; by default the running agent's, or else qmp-agent's"
    )
    command.add_argument("--json", action="store_true", help="as one JSON array; fields as in docs/monitors.md")

    command = _command(commands, "schema", _schema, "print the JSON schema of records or of the config")
    command.add_argument("of", choices=("record", "config"))

    command = _command(commands, "demo", _demo, "boot two small guests, watch them and make things happen")
    command.add_argument(
        "--duration", dest="seconds", type=_duration, metavar="TIME", help="end by itself after this long, such as 30s"
    )
    command.add_argument("--output", type=Path, metavar="FILE", help="leave every record in this file, one a line")
    command.add_argument("--alertmanager", type=_alertmanager, metavar="URL", help="tell this Alertmanager of alerts")


def _command(
    commands: Any, name: str, handler: Callable[[argparse.Namespace], int], text: str
) -> argparse.ArgumentParser:
    command: argparse.ArgumentParser = commands.add_parser(name, help=text, description=f"{text[0].upper()}{text[1:]}.")
    command.set_defaults(handler=handler)
    return command


def _config_option(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--config", type=Path, default=None, metavar="FILE", help=f"the config file; by default {DEFAULT_PATH}"
    )


def _visitor_options(command: argparse.ArgumentParser) -> None:
    command.add_argument("--ca", type=Path, metavar="FILE", help="the authorities that vouch for the endpoint")
    command.add_argument("--cert", type=Path, metavar="FILE", help="a client certificate, with its key")
    command.add_argument("--user", default="", help="a user that the endpoint's web config knows")
    command.add_argument("--password-file", type=Path, metavar="FILE", help="a file whose first line is the password")


def _visitor(parsed: argparse.Namespace) -> EndpointCredentials:
    return EndpointCredentials(parsed.ca, parsed.cert, parsed.user, parsed.password_file)


def _duration(text: str) -> float:
    try:
        return parse_seconds(float(text) if text.isdecimal() else text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def _size(text: str) -> int:
    try:
        return parse_bytes(int(text) if text.isdecimal() else text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def _speed(text: str) -> float:
    speed = float(text)
    if not 0 < speed <= 1000:
        raise argparse.ArgumentTypeError("should be more than 0 and at most 1000")
    return speed


def _alertmanager(text: str) -> AlertmanagerConfig:
    try:
        return AlertmanagerConfig(url=text)
    except ValueError as error:
        raise argparse.ArgumentTypeError("should be a URL, such as http://127.0.0.1:9093") from error


def _loop(main: Coroutine[Any, Any, None]) -> None:
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(main)


def _run(parsed: argparse.Namespace) -> int:
    read = partial(load, parsed.config or DEFAULT_PATH)
    config = read()
    configure_logging(config.log.level, config.log.format)
    faulthandler.enable()  # where the service manager's watchdog ends us, the log says what hung
    _loop(_ended(run(config, read)))
    return 0


async def _ended(main: Coroutine[Any, Any, None]) -> None:
    """Run it to its end; all that is to be saved is saved then. A thread that a disk holds would keep the process from ending."""
    status = 1
    try:
        await main
        status = 0
    finally:
        timer = threading.Timer(LINGER_SECONDS, os._exit, (status,))
        timer.daemon = True  # so that it ends with a process that ends by itself
        timer.start()


def _check(parsed: argparse.Namespace) -> int:
    from agent.cli.check import check  # noqa: PLC0415 - nobody who runs the agent pays for it

    path = parsed.config or DEFAULT_PATH
    config = load(path)
    print(f"{path}: the config is good")
    if parsed.syntax:
        return 0
    bad = []

    async def findings() -> None:
        async for good, text in check(config):
            print(f"{'ok ' if good else 'BAD'}  {text}", flush=True)
            if not good:
                bad.append(text)

    _loop(findings())
    return 1 if bad else 0


def _tail(parsed: argparse.Namespace) -> int:
    from agent.cli.tail import Wanted, tail  # noqa: PLC0415 - as above

    url = parsed.url or _listening(parsed.config)
    _loop(tail(Wanted(url.rstrip("/"), parsed.vm, parsed.type, parsed.severity, parsed.json, _visitor(parsed))))
    return 0


def _top(parsed: argparse.Namespace) -> int:
    from agent.cli.top.terminal import TopOptions, once, show  # noqa: PLC0415 - curses is for those who have a terminal

    url = parsed.url or _listening(parsed.config)
    view = TopOptions(url.rstrip("/"), parsed.interval, parsed.vm, _visitor(parsed))
    asyncio.run(once(view) if parsed.once else show(view))
    return 0


def _listening(path: Path | None) -> str:
    """Return the agent's URL by its config, or by default where there is none to read."""
    path = path or (DEFAULT_PATH if DEFAULT_PATH.exists() else None)
    config = load(path) if path is not None else None
    to = config.web if config is not None else WebConfig()
    scheme = "http"
    if to.config_file is not None:
        with contextlib.suppress(EndpointError, OSError):  # it may be readable by the agent alone
            scheme = "https" if LoadedWebConfig.read(expand(to.config_file)).tls is not None else "http"
    host, _, port = to.listen_address.rpartition(":")
    return f"{scheme}://{'127.0.0.1' if host in ('0.0.0.0', '[::]') else host}:{port}"  # noqa: S104 - compared, not bound


def _journal(parsed: argparse.Namespace) -> int:
    from agent.cli import journal  # noqa: PLC0415 - as above

    folder = load(parsed.config or DEFAULT_PATH).journal.directory
    match parsed.action:
        case "show":
            for text in journal.show(folder):
                print(text)
        case "export":
            for body in journal.export(folder, file=parsed.file, dead=parsed.dead_letters):
                sys.stdout.buffer.write(body)
        case "replay":
            count = journal.replay(folder, file=parsed.file)
            print(f"{count} records are to be delivered at the agent's next start")
    return 0


def _record(parsed: argparse.Namespace) -> int:
    from agent.cli.capture.record import record  # noqa: PLC0415 - as above

    async def main() -> None:
        config = _capture_config(parsed)
        print(await record(parsed.monitor, parsed.file, config, seconds=parsed.seconds, max_bytes=parsed.max_size))

    _loop(main())
    return 0


def _replay(parsed: argparse.Namespace) -> int:
    from agent.cli.capture.replay import replay  # noqa: PLC0415 - as above

    _loop(replay(parsed.file, _capture_config(parsed), listen=parsed.listen, speed=parsed.speed))
    return 0


def _capture_config(parsed: argparse.Namespace) -> Config:
    """Return the config that is named, else the defaults: its monitors do not count."""
    configure_logging("warning", "auto")
    return load(parsed.config) if parsed.config is not None else Config(monitors=[DialConfig(dial="/nowhere")])


def _doctor(parsed: argparse.Namespace) -> int:
    from agent.cli.doctor.inspection import inspect_host  # noqa: PLC0415 - as above
    from agent.cli.doctor.model import HostView  # noqa: PLC0415 - as above
    from agent.cli.doctor.rendering import render  # noqa: PLC0415 - as above
    from agent.host import permissions  # noqa: PLC0415 - as above

    path = parsed.config or (DEFAULT_PATH if DEFAULT_PATH.exists() else None)
    try:
        user = permissions.agent_user(parsed.user)
    except KeyError:
        print(f"qmp-agent: this host has no user {parsed.user}", file=sys.stderr)
        return USAGE_ERROR
    reports = inspect_host(HostView(user, load(path) if path is not None else None), parsed.vm)
    if parsed.json:
        print(json.dumps([dataclasses.asdict(vm) for vm in reports], indent=2))
    else:
        print(*render(reports), sep="\n")
    return 0


def _schema(parsed: argparse.Namespace) -> int:
    from agent.cli import schema  # noqa: PLC0415 - as above

    made = schema.record_schema() if parsed.of == "record" else schema.config_schema()
    print(json.dumps(made, indent=2))
    return 0


def _demo(parsed: argparse.Namespace) -> int:
    from agent.cli.demo.play import play  # noqa: PLC0415 - as above

    _loop(play(parsed.seconds, parsed.output, parsed.alertmanager))
    return 0


def _version(_: argparse.Namespace) -> int:
    print(f"qmp-agent {__version__}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
