"""The subcommands of `qmp-agent`. The command line loads this module after it has parsed the arguments, because it imports the agent."""

import argparse
import asyncio
import contextlib
import dataclasses
import faulthandler
import json
import os
import sys
import threading
from collections.abc import Callable, Coroutine
from functools import partial
from typing import Any

import uvloop

from agent.app.agent import run
from agent.cli.http_client import EndpointCredentials
from agent.common.config_types import expand_secret_path
from agent.common.errors import SubcommandError
from agent.common.paths import CONFIG_PATH
from agent.config.loader import ConfigError, load
from agent.config.model import Config, WebConfig
from agent.http.web_config import EndpointError, LoadedWebConfig
from agent.monitors import DialConfig
from agent.runtime.logging import configure_logging

USAGE_ERROR = 2
THREAD_EXIT_SECONDS = 2.0
"""How long a finished `run` waits for its threads before the process exits."""

Handler = Callable[[argparse.Namespace], int]
"""Runs a subcommand with its parsed options, and returns the exit status."""


def execute(parsed: argparse.Namespace) -> int:
    """Run the subcommand that the arguments name, and print its errors.

    Args:
        parsed: the parsed arguments.

    Returns:
        The exit status: 0 after success, 1 after a failure, 2 for a wrong config.
    """
    try:
        return SUBCOMMANDS[parsed.subcommand](parsed)
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


def _run_loop(main: Coroutine[Any, Any, None]) -> None:
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(main)


def _execute_run(parsed: argparse.Namespace) -> int:
    read = partial(load, parsed.config or CONFIG_PATH)
    config = read()
    configure_logging(config.log.level, config.log.format)
    faulthandler.enable()  # systemd's watchdog ends the process with SIGABRT; the log then shows where it hung
    _run_loop(_exit_after(run(config, read)))
    return 0


async def _exit_after(main: Coroutine[Any, Any, None]) -> None:
    """Run a coroutine to its end, and then end the process within THREAD_EXIT_SECONDS, even if a hung disk blocks a thread."""
    status = 1
    try:
        await main
        status = 0
    finally:
        timer = threading.Timer(THREAD_EXIT_SECONDS, os._exit, (status,))
        timer.daemon = True  # the process can end before
        timer.start()


def _execute_check(parsed: argparse.Namespace) -> int:
    from agent.cli.check import check  # noqa: PLC0415 - `qmp-agent run` does not need it

    path = parsed.config or CONFIG_PATH
    config = load(path)
    print(f"{path}: the config is valid")
    if parsed.syntax:
        return 0
    failures = []

    async def print_findings() -> None:
        async for finding in check(config):
            print(f"{'ok' if finding.ok else 'FAIL':4}  {finding.text}", flush=True)
            if not finding.ok:
                failures.append(finding)

    _run_loop(print_findings())
    return 1 if failures else 0


def _execute_tail(parsed: argparse.Namespace) -> int:
    from agent.cli.tail import TailOptions, tail  # noqa: PLC0415 - as above

    url, credentials = _endpoint_url(parsed), _credentials_from(parsed)
    _run_loop(tail(TailOptions(url, parsed.vm, parsed.type, parsed.severity, parsed.json, credentials)))
    return 0


def _execute_top(parsed: argparse.Namespace) -> int:
    from agent.cli.top.terminal import TopOptions, print_once, run_top  # noqa: PLC0415 - curses needs a terminal

    options = TopOptions(_endpoint_url(parsed), parsed.interval, parsed.vm, _credentials_from(parsed))
    asyncio.run(print_once(options) if parsed.once else run_top(options))
    return 0


def _execute_resync(parsed: argparse.Namespace) -> int:
    from agent.cli.resync import resync  # noqa: PLC0415 - as above

    async def main() -> None:
        print(f"{await resync(_endpoint_url(parsed), _credentials_from(parsed))} states are written again")

    _run_loop(main())
    return 0


def _endpoint_url(parsed: argparse.Namespace) -> str:
    """Return the URL of the agent's endpoint: from the option --url, else from the config, else the default."""
    if parsed.url:
        return str(parsed.url).rstrip("/")
    path = parsed.config or (CONFIG_PATH if CONFIG_PATH.exists() else None)
    web = load(path).web if path is not None else WebConfig()
    scheme = "http"
    if web.config_file is not None:
        with contextlib.suppress(EndpointError, OSError):  # this user may have no permission to read the file
            scheme = "https" if LoadedWebConfig.read(expand_secret_path(web.config_file)).tls is not None else "http"
    host, _, port = web.listen_address.rpartition(":")
    return f"{scheme}://{'127.0.0.1' if host in ('0.0.0.0', '[::]') else host}:{port}"  # noqa: S104 - compared, not bound


def _credentials_from(parsed: argparse.Namespace) -> EndpointCredentials:
    """Return the credentials that the options of a client of the endpoint name."""
    return EndpointCredentials(parsed.ca, parsed.cert, parsed.user, parsed.password_file)


def _execute_journal(parsed: argparse.Namespace) -> int:
    from agent.cli import journal  # noqa: PLC0415 - as above

    directory = load(parsed.config or CONFIG_PATH).journal.directory
    match parsed.action:
        case "show":
            for text in journal.show(directory):
                print(text)
        case "export":
            for body in journal.export(directory, file=parsed.file, dead_letters=parsed.dead_letters):
                sys.stdout.buffer.write(body)
        case "replay":
            count = journal.replay(directory, file=parsed.file)
            print(f"{count} records enqueued; the agent delivers them at its next start")
    return 0


def _execute_record(parsed: argparse.Namespace) -> int:
    from agent.cli.capture.record import record  # noqa: PLC0415 - as above

    async def main() -> None:
        config = _capture_config(parsed)
        print(await record(parsed.monitor, parsed.file, config, seconds=parsed.seconds, max_bytes=parsed.max_size))

    _run_loop(main())
    return 0


def _execute_replay(parsed: argparse.Namespace) -> int:
    from agent.cli.capture.replay import replay  # noqa: PLC0415 - as above

    _run_loop(replay(parsed.file, _capture_config(parsed), listen=parsed.listen, speed=parsed.speed))
    return 0


def _capture_config(parsed: argparse.Namespace) -> Config:
    """Return the config of --config, else the default config. `record` and `replay` replace its monitors."""
    configure_logging("warning", "auto")
    return load(parsed.config) if parsed.config is not None else Config(monitors=[DialConfig(dial="/nowhere")])


def _execute_doctor(parsed: argparse.Namespace) -> int:
    from agent.cli.doctor.inspection import inspect_host  # noqa: PLC0415 - as above
    from agent.cli.doctor.model import HostView  # noqa: PLC0415 - as above
    from agent.cli.doctor.rendering import render  # noqa: PLC0415 - as above
    from agent.cli.doctor.storage import add_images  # noqa: PLC0415 - as above
    from agent.host import permissions  # noqa: PLC0415 - as above

    path = parsed.config or (CONFIG_PATH if CONFIG_PATH.exists() else None)
    try:
        user = permissions.agent_user(parsed.user)
    except KeyError:
        print(f"qmp-agent: user {parsed.user} does not exist on this host", file=sys.stderr)
        return USAGE_ERROR
    host = HostView(user, load(path) if path is not None else None)
    reports = add_images(inspect_host(host, parsed.vm), user, host.proc)
    if parsed.json:
        print(json.dumps([dataclasses.asdict(vm) for vm in reports], indent=2))
    else:
        print(*render(reports), sep="\n")
    return 0


def _execute_schema(parsed: argparse.Namespace) -> int:
    from agent.config.schema import config_schema  # noqa: PLC0415 - as above
    from agent.schemas.data import published_schemas  # noqa: PLC0415
    from agent.schemas.record import record_schema  # noqa: PLC0415

    schemas = {"record": record_schema, "config": config_schema, "data": published_schemas}
    print(json.dumps(schemas[parsed.of](), indent=2))
    return 0


def _execute_register_schemas(parsed: argparse.Namespace) -> int:
    from agent.cli.schema_registry import register_schemas  # noqa: PLC0415 - as above

    rejected = []

    async def print_registrations() -> None:
        async for registration in register_schemas(parsed.url, _credentials_from(parsed)):
            if registration.error:
                rejected.append(registration)
            print(f"{registration.subject}: {registration.error or f'id {registration.id}'}", flush=True)

    _run_loop(print_registrations())
    return 1 if rejected else 0


def _execute_demo(parsed: argparse.Namespace) -> int:
    from agent.cli.demo.demo_run import run_demo  # noqa: PLC0415 - as above

    _run_loop(run_demo(parsed.seconds, parsed.output, parsed.alertmanager))
    return 0


SUBCOMMANDS: dict[str, Handler] = {
    "run": _execute_run,
    "check": _execute_check,
    "tail": _execute_tail,
    "top": _execute_top,
    "resync": _execute_resync,
    "journal": _execute_journal,
    "record": _execute_record,
    "replay": _execute_replay,
    "doctor": _execute_doctor,
    "schema": _execute_schema,
    "register-schemas": _execute_register_schemas,
    "demo": _execute_demo,
}
