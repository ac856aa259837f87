"""The subcommand `qmp-agent doctor`."""

import argparse
import dataclasses
import json
import sys
from pathlib import Path

from agent.cli.doctor.image_pools import add_image_reports
from agent.cli.doctor.inspection import inspect_host
from agent.cli.doctor.model import HostToInspect
from agent.cli.doctor.rendering import render_reports
from agent.cli.subcommand_runner import USAGE_ERROR
from agent.common.default_paths import CONFIG_PATH
from agent.config.loader import load_config
from agent.host import socket_permissions


def execute(parsed: argparse.Namespace) -> int:
    """Report whether the agent can watch each VM on this host."""
    path = parsed.config or (CONFIG_PATH if _may_exist(CONFIG_PATH) else None)
    try:
        user = socket_permissions.find_agent_user(parsed.user)
    except KeyError:
        print(f"qmp-agent: user {parsed.user} does not exist on this host", file=sys.stderr)
        return USAGE_ERROR
    host = HostToInspect(user, load_config(path) if path is not None else None)
    reports = add_image_reports(inspect_host(host, parsed.vm), user, host.proc)
    if parsed.json:
        print(json.dumps([dataclasses.asdict(vm) for vm in reports], indent=2))
    else:
        print(*render_reports(reports), sep="\n")
    return 0


def _may_exist(path: Path) -> bool:
    """Return whether a file exists. Also return True if this user may not search the file's directory."""
    try:
        path.stat()
    except PermissionError:
        return True
    except OSError:
        return False
    return True
