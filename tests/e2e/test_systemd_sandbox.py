"""The agent works in the sandbox of its systemd unit. The test builds this sandbox without systemd.

The agent runs as a user of its own with one group and no capability. Every mount is read-only, except for the state directory. Written
memory cannot become executable, and the process cannot gain privileges.
"""

import asyncio
import os
import shutil
import sys
from pathlib import Path
from typing import Final

import pytest

from tests.lab.agent_process import AgentProcess
from tests.lab.fake_qemu import FakeQemu
from tests.lab.hidden_paths import ROOT, hidden_paths, reveal
from tests.lab.machine import free_port
from tests.lab.waiting import until

USER, GROUP = 65534, 54321
"""An unprivileged user, and a group without a name: the one that may connect to monitors."""
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
ctypes.CDLL(None).prctl(PR_SET_MDWE, PR_MDWE_REFUSE_EXEC_GAIN, 0, 0, 0)  # since Linux 6.3; older ones ignore it
from agent.cli.main import main
sys.exit(main(["run", "--config", sys.argv[1]]))
"""


def create_state_directory(folder: Path) -> Path:
    """Create the state directory of the agent's user in a folder that this user may enter."""
    folder.chmod(0o755)
    state = folder / "agent.journal"
    state.mkdir()
    os.chown(state, USER, GROUP)
    return state


async def test_the_agent_works_in_the_sandbox_of_its_unit(folder: Path) -> None:
    if os.geteuid() != 0 or shutil.which("unshare") is None:
        pytest.skip("dropping privileges needs root")
    state = create_state_directory(folder)
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
            *("bash", "-c", f"{reveal(hidden_paths(), folder / 'mounts')}\n{READ_ONLY}", "bash"),
            *(str(state), str(folder / "elsewhere"), str(USER), str(GROUP)),
            *(sys.executable, "-c", NO_NEW_CODE, str(agent.config)),
            cwd=ROOT,
            env=os.environ | {"PYTHONPATH": str(ROOT)},
            stderr=asyncio.subprocess.PIPE,
        )
        try:
            await until(lambda: mine.count("query-blockstats") > 3 or process.returncode is not None)
            if (ended := process.returncode) == 77:
                pytest.skip("mounts cannot be made read-only here")
            assert ended is None, (await process.communicate())[1].decode()
            status = Path(f"/proc/{process.pid}/status").read_text()  # noqa: ASYNC240 - a file of the kernel's
            assert f"Uid:\t{USER}" in status
            assert "CapEff:\t0000000000000000" in status

            async def has_journaled() -> bool:
                series = await agent.metrics()
                states = [series.value("qmp_agent_monitors", state=state) for state in ("up", "denied")]
                written = series.value("qmp_agent_journal_records_written_total", queue="events")
                return states == [1, 1] and series.value("qmp_agent_journal_up") == 1 and bool(written)

            await until(has_journaled)
            assert (await agent.get("/healthz"))[0] == 200
            assert "permission denied for user" in (await agent.get("/overview"))[1]
        finally:
            if process.returncode is None:
                process.terminate()
            _, log = await process.communicate()
    assert process.returncode == 0
    assert b"Read-only" not in log
    assert b"Traceback" not in log
    assert {path.name for path in state.iterdir()} >= {"journal.db", "lock"}
