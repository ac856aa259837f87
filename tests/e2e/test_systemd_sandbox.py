"""The agent as its unit has it, as near as a test comes without systemd.

A user of its own with one group and no capability, on a host whose every mount is read-only but for the state folder, with no memory
that is both written and run, and no way to new privileges.
"""

import asyncio
import os
import shutil
import sys
from pathlib import Path
from typing import Final

import pytest

from agent.cli.demo.guest import until
from tests.lab.agent_process import AgentProcess
from tests.lab.fake_qemu import FakeQemu
from tests.lab.machine import free_port

USER, GROUP = 65534, 54321
"""Nobody, and a group that has no name here: the one that may connect to monitors."""
READ_ONLY: Final = """
awk '{print $5}' /proc/self/mountinfo | while read -r mount; do mount -o remount,bind,ro "$mount" 2>/dev/null || true; done
mount --bind "$1" "$1" && mount -o remount,bind,rw "$1" && shift
if touch "$1" 2>/dev/null; then exit 77; fi
shift
exec setpriv --reuid "$1" --regid "$2" --clear-groups --no-new-privs --bounding-set=-all --inh-caps=-all "${@:3}"
"""
NO_NEW_CODE: Final = """
import ctypes, sys
PR_SET_MDWE, PR_MDWE_REFUSE_EXEC_GAIN = 65, 1
ctypes.CDLL(None).prctl(PR_SET_MDWE, PR_MDWE_REFUSE_EXEC_GAIN, 0, 0, 0)  # Linux 6.3; an older one has it not
from agent.cli.main import main
sys.exit(main(["run", "--config", sys.argv[1]]))
"""


def made(folder: Path) -> Path:
    """Return the state folder, which is the user's; the one above it may be looked into."""
    folder.chmod(0o755)
    state = folder / "agent.journal"
    state.mkdir()
    os.chown(state, USER, GROUP)
    return state


async def test_it_works_with_one_group_no_capability_and_nothing_to_write_to_but_its_state_folder(folder: Path) -> None:
    if os.geteuid() != 0 or shutil.which("unshare") is None:
        pytest.skip("taking rights away takes root")
    state = made(folder)
    kafka = {"bootstrap_servers": [f"127.0.0.1:{free_port()}"], "request_timeout": "1s"}
    agent = AgentProcess(
        folder, {"monitors": [{"dial": f"{folder}/*.qmp"}], "kafka": kafka, "intervals": {"poll": "200ms"}}
    )
    async with FakeQemu(folder / "mine.qmp") as mine, FakeQemu(folder / "other.qmp") as other:
        for path, group in ((mine.path, GROUP), (other.path, 0)):
            os.chown(path, 0, group)
            os.chmod(path, 0o660)  # noqa: PTH101 - as the line above
        process = await asyncio.create_subprocess_exec(
            *("setpriv", "--pdeathsig", "KILL", "unshare", "--mount", "--propagation", "private"),
            *("bash", "-c", READ_ONLY, "bash", str(state), str(folder / "elsewhere"), str(USER), str(GROUP)),
            *(sys.executable, "-c", NO_NEW_CODE, str(agent.config)),
            stderr=asyncio.subprocess.PIPE,
        )
        try:
            await until(lambda: mine.count("query-blockstats") > 3 or process.returncode is not None, 45)
            if (ended := process.returncode) in (77, 126, 127):
                pytest.skip("mounts cannot be made read-only here, or the interpreter is root's own")
            assert ended is None, (await process.communicate())[1].decode()
            status = Path(f"/proc/{process.pid}/status").read_text()  # noqa: ASYNC240 - a file of the kernel's
            assert f"Uid:\t{USER}" in status
            assert "CapEff:\t0000000000000000" in status
            series = await agent.metrics()
            assert series.value("qmp_agent_monitors", state="up") == 1
            assert series.value("qmp_agent_monitors", state="denied") == 1
            assert series.value("qmp_agent_journal_up") == 1
            (written,) = (
                value for _, value in series.matching("qmp_agent_journal_records_written_total", queue="events")
            )
            assert written > 0
            assert (await agent.get("/healthz"))[0] == 200
            assert "may not connect" in (await agent.get("/overview"))[1]
        finally:
            if process.returncode is None:
                process.terminate()
            _, said = await process.communicate()
    assert process.returncode == 0
    assert b"Read-only" not in said
    assert b"Traceback" not in said
    assert {path.name for path in state.iterdir()} >= {"journal.db", "lock"}
