"""Reads file systems through a child process, because a system call on a hung file system would block the agent.

One child answers all requests in order. A child whose answer is late keeps waiting for the mount, and a new child answers the other
requests. Further requests for the late mount fail at once until the mount answers. So each mount blocks at most one child.
"""

import asyncio
import logging
import os
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from agent.host import filesystem_child
from agent.host.child_process import EXIT_SECONDS, ChildProcess, ChildUnavailableError
from agent.host.pools.base import PoolReadError, PoolUnresponsiveError
from agent.host.procfs import parse_process_state, split_stat
from agent.host.qemu_processes import read_file

_log = logging.getLogger(__name__)

SUSPECT_SECONDS = 0.25
"""Seconds without an answer after which a mount is suspect: the mount may hang. A healthy mount answers within a millisecond."""

DEADLINE_SECONDS = 3.0
"""Seconds without an answer after which a mount is unresponsive."""

MAX_WAITING_CHILDREN = 16
"""Maximum number of children that wait for mounts. A further child is killed, and its mount stays suspect for `RETRY_SECONDS`."""

RETRY_SECONDS = 30.0

MAX_BATCH_REQUESTS = 256

MAX_CACHED_STATS = 1024
"""Maximum number of paths whose last statistics are cached."""

TIMER_RESOLUTION_SECONDS = 0.01
"""Resolution of an event loop's timers."""


class FileSystemStats(NamedTuple):
    """Statistics of a file system from statvfs(3).

    Attributes:
        size_bytes: size of the file system.
        free_bytes: free bytes, including the bytes that are reserved for root.
        available_bytes: free bytes for a process without privileges.
        inodes: number of inodes; 0 if the file system has no fixed number.
        available_inodes: free inodes for a process without privileges.
    """

    size_bytes: int
    free_bytes: int
    available_bytes: int
    inodes: int
    available_inodes: int


@dataclass(slots=True, eq=False)
class _Request:
    line: bytes
    mount: str
    sent_at: float
    answer: "asyncio.Future[bytes]" = field(default_factory=lambda: asyncio.get_running_loop().create_future())


def _is_runnable(pid: int) -> bool:
    """Return whether the process is in state R: running, or waiting for a CPU."""
    return parse_process_state(split_stat(read_file(f"/proc/{pid}/stat"))) == "running"


class FileSystemReader:
    """Runs statvfs and realpath in child processes.

    Each request has an argument `mount`, the name of the mount that may hang. The name is `major:minor` of the path's file system, or
    `path:` and a path.
    """

    def __init__(
        self,
        *,
        slow_seconds: float = SUSPECT_SECONDS,
        deadline_seconds: float = DEADLINE_SECONDS,
        program: Path = Path(filesystem_child.__file__),
        on_change: Callable[[], None] = lambda: None,
    ) -> None:
        """Create a reader. Call `close` after use.

        Args:
            slow_seconds: time without an answer after which a mount is suspect.
            deadline_seconds: time without an answer after which a mount is unresponsive.
            program: path of the child's Python program.
            on_change: called when a mount becomes suspect or unresponsive, or responds again.
        """
        self.on_change = on_change
        self._slow_seconds = slow_seconds
        self._deadline_seconds = deadline_seconds
        self._program = program
        self._child: ChildProcess | None = None
        self._queue: deque[_Request] = deque()
        self._queue_task: asyncio.Task[None] | None = None
        self._unresponsive_since: dict[str, float] = {}
        self._waiting_children: dict[str, tuple[ChildProcess, asyncio.Task[None]]] = {}
        self._answered_at: dict[str, float] = {}
        self._recent_stats: dict[str, tuple[float, FileSystemStats]] = {}

    # State of mounts.

    def is_mount_suspect(self, mount: str) -> bool:
        """Return whether a request for the mount has waited for an answer for longer than `slow_seconds`."""
        return mount in self._unresponsive_since

    def is_mount_unresponsive(self, mount: str) -> bool:
        """Return whether a request for the mount has exceeded the deadline; False while the child process runs or waits for a CPU."""
        seconds = self.seconds_waiting_for_mount(mount)
        if seconds is None or seconds < self._deadline_seconds - TIMER_RESOLUTION_SECONDS:
            return False
        return mount not in self._waiting_children or not _is_runnable(self._waiting_children[mount][0].pid)

    def seconds_waiting_for_mount(self, mount: str) -> float | None:
        """Return how long the request for a suspect mount has waited, in seconds; None if the mount is not suspect."""
        since = self._unresponsive_since.get(mount)
        return None if since is None else time.monotonic() - since

    def seconds_since_mount_answered(self, mount: str) -> float:
        """Return the seconds since the last answer of this mount; infinite if the mount never answered."""
        return time.monotonic() - self._answered_at.get(mount, float("-inf"))

    # Requests.

    async def statvfs(self, path: str, mount: str) -> FileSystemStats:
        """Return the statistics of the file system that contains a path.

        Raises:
            PoolUnresponsiveError: the mount is suspect, or did not answer within the deadline.
            PoolReadError: the path cannot be accessed, or the host is overloaded.
        """
        answer = await self._send_request("statfs", path, mount)
        try:
            figures = FileSystemStats(*map(int, answer.split()))
        except (TypeError, ValueError) as error:
            raise PoolReadError(f"{path}: the child process sent an invalid answer") from error
        self._recent_stats.pop(path, None)
        self._recent_stats[path] = time.monotonic(), figures
        if len(self._recent_stats) > MAX_CACHED_STATS:
            del self._recent_stats[next(iter(self._recent_stats))]
        return figures

    def cached_stats(self, path: str, seconds: float) -> FileSystemStats | None:
        """Return the last result of `statvfs` for a path; None without a result, or if the result is older than `seconds`."""
        at, figures = self._recent_stats.get(path, (float("-inf"), None))
        return figures if time.monotonic() - at <= seconds else None

    async def realpath(self, path: str, mount: str) -> str:
        """Return a path with all symbolic links resolved. Raises the errors of `statvfs`."""
        answer = await self._send_request("realpath", path, mount)
        return os.fsdecode(bytes.fromhex(answer))

    async def _send_request(self, operation: str, path: str, mount: str) -> str:
        if mount in self._unresponsive_since:
            raise PoolUnresponsiveError(f"{path}: the file system does not answer")
        request = _Request(f"{operation} {os.fsencode(path).hex()}\n".encode(), mount, time.monotonic())
        self._queue.append(request)
        if self._queue_task is None:
            self._queue_task = asyncio.create_task(self._serve_queue(), name="read file systems")
        try:
            async with asyncio.timeout(self._deadline_seconds):
                answer = await request.answer  # a timeout cancels the future, so a late answer is ignored
        except TimeoutError:
            cause = f"{path}: the file system did not answer within {self._deadline_seconds:g} s"
            if not self.is_mount_unresponsive(mount):
                raise PoolReadError(f"{cause}, because the host is overloaded") from None
            self.on_change()
            raise PoolUnresponsiveError(cause) from None
        state, _, result = answer.decode("ascii", "replace").partition(" ")
        if state == "ok":
            return result
        raise PoolReadError(f"{path}: {os.strerror(int(result)) if result.isdecimal() else result}")

    # The child.

    async def _serve_queue(self) -> None:
        """Pass the queued requests to a child until the queue is empty."""
        try:
            while batch := self._next_batch():
                try:
                    if self._child is None:
                        self._child = await ChildProcess.start(self._program)
                    await self._answer_batch(self._child, batch)
                except ChildUnavailableError as error:
                    if self._child is not None:
                        self._child.kill()
                        self._child = None
                    for request in batch:
                        if not request.answer.done():
                            request.answer.set_exception(PoolReadError(str(error)))
        finally:
            self._queue_task = None

    def _next_batch(self) -> list[_Request]:
        batch: list[_Request] = []
        while self._queue and len(batch) < MAX_BATCH_REQUESTS:
            request = self._queue.popleft()
            if request.mount not in self._unresponsive_since:
                batch.append(request)
            elif not request.answer.done():
                request.answer.set_exception(PoolUnresponsiveError("the file system does not answer"))
        return batch

    async def _answer_batch(self, child: ChildProcess, batch: list[_Request]) -> None:
        """Send the requests to a child, and set their answers. Put the requests after a late answer back into the queue.

        Raises:
            ChildUnavailableError: the child has exited.
        """
        child.send(b"".join(request.line for request in batch))
        for index, request in enumerate(batch):
            try:
                async with asyncio.timeout(self._slow_seconds):
                    line = await child.read_line()
            except TimeoutError:
                self._mark_mount_suspect(child, request)
                self._queue.extendleft(reversed(batch[index + 1 :]))
                return
            self._set_answer(request, line)

    def _set_answer(self, request: _Request, line: bytes) -> None:
        self._answered_at[request.mount] = time.monotonic()
        if not request.answer.done():
            request.answer.set_result(line)

    def _mark_mount_suspect(self, child: ChildProcess, request: _Request) -> None:
        """Mark the mount as suspect, and let the child wait for the mount's answer."""
        self._child = None
        self._unresponsive_since[request.mount] = request.sent_at
        if len(self._waiting_children) < MAX_WAITING_CHILDREN:
            task = asyncio.create_task(self._await_late_answer(child, request), name="wait for a mount")
            self._waiting_children[request.mount] = child, task
        else:
            child.kill()
            asyncio.get_running_loop().call_later(RETRY_SECONDS, self._clear_suspect, request.mount)
        self.on_change()

    async def _await_late_answer(self, child: ChildProcess, request: _Request) -> None:
        """Wait without a deadline for a child's late answer, and then kill the child. Only the mount can end the system call."""
        try:
            line = await child.read_line()
        except ChildUnavailableError as error:
            if not request.answer.done():
                request.answer.set_exception(PoolReadError(str(error)))
        else:
            self._set_answer(request, line)
        finally:
            child.kill()  # the child's standard input still contains further requests
            self._waiting_children.pop(request.mount, None)
            self._clear_suspect(request.mount)

    def _clear_suspect(self, mount: str) -> None:
        self._unresponsive_since.pop(mount, None)
        self.on_change()

    async def close(self) -> None:
        """Kill the children, and wait at most `EXIT_SECONDS`. A child that hangs on storage exits only after the storage answers."""
        tasks = [task for _, task in self._waiting_children.values()]
        children = [child for child, _ in self._waiting_children.values()]
        tasks += [self._queue_task] if self._queue_task is not None else []
        children += [self._child] if self._child is not None else []
        self._child = None
        for child in children:
            child.kill()
        for task in tasks:
            task.cancel()
        exits = [asyncio.create_task(child.wait_for_exit()) for child in children]
        await asyncio.gather(*tasks, return_exceptions=True)
        if exits:
            _, pending = await asyncio.wait(exits, timeout=EXIT_SECONDS)
            for exit_task in pending:
                exit_task.cancel()
