"""The user whose access doctor judges, and the paths that the user may not enter."""

import os
from pathlib import Path

import pytest

from agent.host.socket_permissions import User, describe_denial, find_agent_user, find_paths_denied_to_user
from agent.host.unix_and_tcp_sockets import is_agent_process
from tests.lab.manager_hosts import ROOT, FakeProcHost


def test_the_default_user_is_that_of_the_running_agent(tmp_path: Path) -> None:
    host = FakeProcHost(tmp_path)
    host.add_process(7, "/usr/bin/python3 /usr/bin/qmp-agent run --config /etc/qmp-agent/agent.yaml", uid=65534)
    host.add_process(8, "/usr/bin/python3 /usr/bin/qmp-agent doctor")
    host.add_process(9, "/usr/bin/python3 /usr/bin/qmp-agent demo", uid=65534)
    assert [is_agent_process(pid, host.proc) for pid in (7, 8, 9)] == [True, False, True]
    assert find_agent_user(proc=host.proc).name == "nobody"
    assert find_agent_user("root", host.proc) == User("root", 0, frozenset({0}))
    with pytest.raises(KeyError):
        find_agent_user("no-such-user", host.proc)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can check other users")
def test_blocked_paths_are_those_that_the_kernel_denies(tmp_path: Path) -> None:
    other = User("other", 65534, frozenset({65534}))
    shut, socket = tmp_path / "shut", tmp_path / "shut" / "m"
    shut.mkdir(mode=0o700)
    socket.write_text("")
    socket.chmod(0o660)
    assert find_paths_denied_to_user(str(socket), other)[-2:] == [shut, socket]
    assert find_paths_denied_to_user(str(socket), ROOT) == []
    assert describe_denial(shut, other) == f"other may not enter {shut} (root:root 0700)"
    os.chown(socket, 0, 65534)
    assert find_paths_denied_to_user(str(socket), other)[-1] == shut
    assert describe_denial(tmp_path / "gone", other).endswith("No such file or directory")
    assert (os.geteuid(), os.getegid()) == (0, 0)
