"""Starts processes of `qmp-agent` as forks of a process that has imported the agent: nearly all CPU time of a start is for imports.

`python -m tests.lab.agent_forks` is that process. Each process of the tests has one. It ends, with its forks, when the tests end.
"""

import contextlib
import ctypes
import functools
import gc
import importlib
import json
import os
import selectors
import signal
import socket
import sys
from collections.abc import Sequence
from typing import BinaryIO, Final

from tests.lab.command_audit import main
from tests.lab.waiting import until

_PRELOADED: Final = ("agent.cli.commands.run", "aiokafka")
_REQUEST_BYTES: Final = 1 << 18
_PID_DIGITS: Final = 8
_SET_PARENT_DEATH_SIGNAL: Final = 1  # PR_SET_PDEATHSIG


class ForkedAgent:
    """A running `qmp-agent`, with the methods of a process of asyncio.

    Attributes:
        pid: the process ID.
    """

    def __init__(self, arguments: Sequence[str], out: BinaryIO, log: BinaryIO) -> None:
        """Start the agent. Blocks for milliseconds, and the first time for about a second.

        Args:
            arguments: the arguments of `qmp-agent`.
            out: the file for standard output.
            log: the file for standard error.
        """
        self._status, end = os.pipe()  # has the process ID, and later the exit status
        with open(os.devnull, "rb") as nothing:  # noqa: PTH123 - no path
            request = {"arguments": [*arguments], "environment": dict(os.environ)}
            descriptors = [*(file.fileno() for file in (nothing, out, log)), end]
            socket.send_fds(_forker(), [json.dumps(request).encode()], descriptors)
        os.close(end)
        self.pid = int(os.read(self._status, _PID_DIGITS))
        os.set_blocking(self._status, False)
        self._returncode: int | None = None

    @property
    def returncode(self) -> int | None:
        """The exit status, or the negative number of the signal that ended the process; None while it runs."""
        if self._returncode is None:
            with contextlib.suppress(BlockingIOError):
                self._returncode = int(os.read(self._status, 99))
                os.close(self._status)
        return self._returncode

    async def wait(self) -> int:
        """Wait until the process ends, and return its exit status."""
        await until(lambda: self.returncode is not None)
        assert self.returncode is not None
        return self.returncode

    def kill(self) -> None:
        """Kill the process with SIGKILL if it is running."""
        if self.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, signal.SIGKILL)


@functools.cache
def _forker() -> socket.socket:
    """Start the process that forks, and return the socket for requests to it."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with theirs:
        theirs.set_inheritable(True)
        command = ("setpriv", "--pdeathsig", "KILL", sys.executable, "-m", __name__, str(theirs.fileno()))
        os.posix_spawnp(command[0], command, os.environ)
    return ours


def _fork_at_requests(requests: socket.socket) -> list[str]:
    """Fork at each request, and report the ends of the forks. Return in each fork, with the arguments of its agent."""
    selector = selectors.DefaultSelector()
    selector.register(requests, selectors.EVENT_READ)
    while True:
        for key, _ in selector.select():
            if key.fileobj is not requests:
                selector.unregister(key.fileobj)
                _report_end(key.fd, *key.data)
                continue
            text, descriptors, *_ = socket.recv_fds(requests, _REQUEST_BYTES, 4)
            if not text:
                sys.exit()
            request = json.loads(text)
            pid = os.fork()
            if pid == 0:
                selector.close()
                requests.close()
                _become_agent(descriptors, request["environment"])
                return [*request["arguments"]]
            *standard, status = descriptors
            for descriptor in standard:
                os.close(descriptor)
            os.write(status, b"%0*d" % (_PID_DIGITS, pid))
            selector.register(os.pidfd_open(pid), selectors.EVENT_READ, (pid, status))


def _report_end(descriptor: int, pid: int, status: int) -> None:
    os.close(descriptor)
    _, waited = os.waitpid(pid, 0)
    with contextlib.suppress(BrokenPipeError):
        os.write(status, b"%d" % os.waitstatus_to_exitcode(waited))
    os.close(status)


def _become_agent(descriptors: Sequence[int], environment: dict[str, str]) -> None:
    """Let this fork have only its own files and environment, and end with the process that forked it."""
    for number, descriptor in enumerate(descriptors[:3]):
        os.dup2(descriptor, number)
    os.closerange(3, os.sysconf("SC_OPEN_MAX"))
    os.environ.clear()
    os.environ.update(environment)
    ctypes.CDLL(None).prctl(_SET_PARENT_DEATH_SIGNAL, signal.SIGKILL)


if __name__ == "__main__":
    for module in _PRELOADED:
        importlib.import_module(module)
    gc.freeze()
    sys.argv[1:] = _fork_at_requests(socket.socket(fileno=int(sys.argv[1])))
    sys.exit(main())
