"""Reading of file systems through a child process, so that one that does not answer blocks neither the agent nor the others.

One child answers all requests, in order. If an answer is late, the child is left waiting for that mount and another child answers the
rest. So at most one request is in flight for a mount, and the answer shows at once that the mount responds again.
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
from agent.host.child import Child, ChildError
from agent.host.pools.base import PoolReadError, PoolUnresponsiveError
from agent.host.procfs import parse_stat
from agent.host.qemu_processes import read_file

_log = logging.getLogger(__name__)

SLOW_SECONDS = 0.25
"""A mount that has not answered for this long counts as suspect. A healthy one answers within a millisecond."""

DEADLINE_SECONDS = 3.0
"""A mount that has not answered for this long is unresponsive."""

MAX_WAITING = 16
"""Maximum number of children that wait for mounts. Beyond it, a mount is tried again after `RETRY_SECONDS`."""

RETRY_SECONDS = 30.0

MAX_BATCH = 256

MAX_RECENT = 1024
"""Maximum number of paths whose last figures are kept."""

END_SECONDS = 0.5
"""How long the end of the agent waits for the end of its children."""

CLOCK_SECONDS = 0.01
"""Resolution of the timers of event loops."""


class FileSystemFigures(NamedTuple):
    """Figures that statvfs reports of a file system.

    Attributes:
        size_bytes: size.
        free_bytes: free bytes, with those that are reserved for root.
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
    """Return whether a process waits for nothing but the CPU."""
    return parse_stat(read_file(f"/proc/{pid}/stat").decode("utf-8", "replace")).get("state") == "running"


class FileSystemReader:
    """Answers questions about paths. Each request names the mount on which it may hang."""

    def __init__(
        self,
        *,
        slow_seconds: float = SLOW_SECONDS,
        deadline_seconds: float = DEADLINE_SECONDS,
        program: Path = Path(filesystem_child.__file__),
        on_change: Callable[[], None] = lambda: None,
    ) -> None:
        """Create a reader; `close` it after use.

        Args:
            slow_seconds: after which a mount is suspect.
            deadline_seconds: after which a mount is unresponsive.
            program: the child's program.
            on_change: called when a mount becomes suspect or unresponsive, or responds again.
        """
        self.on_change = on_change
        self._slow_seconds = slow_seconds
        self._deadline_seconds = deadline_seconds
        self._program = program
        self._child: Child | None = None
        self._queue: deque[_Request] = deque()
        self._serving: asyncio.Task[None] | None = None
        self._silent_since: dict[str, float] = {}
        self._waiting: dict[str, tuple[Child, asyncio.Task[None]]] = {}
        self._answered_at: dict[str, float] = {}
        self._figures: dict[str, tuple[float, FileSystemFigures]] = {}

    # State of mounts.

    def is_suspect(self, mount: str) -> bool:
        """Return whether an answer of this mount is late."""
        return mount in self._silent_since

    @property
    def suspects(self) -> list[str]:
        """The mounts whose answers are late."""
        return list(self._silent_since)

    def is_unresponsive(self, mount: str) -> bool:
        """Return whether an answer of this mount is later than the deadline, and not because the child gets no CPU."""
        silent = self.silent_seconds(mount)
        if silent is None or silent < self._deadline_seconds - CLOCK_SECONDS:
            return False
        return mount not in self._waiting or not _is_runnable(self._waiting[mount][0].pid)

    def silent_seconds(self, mount: str) -> float | None:
        """Return for how long an answer of this mount has been awaited; None if none is late."""
        since = self._silent_since.get(mount)
        return None if since is None else time.monotonic() - since

    def answered_seconds_ago(self, mount: str) -> float:
        """Return how long ago this mount answered last; infinite if it never did."""
        return time.monotonic() - self._answered_at.get(mount, float("-inf"))

    # Requests.

    async def statvfs(self, path: str, mount: str) -> FileSystemFigures:
        """Return the figures of the file system of a path.

        Raises:
            PoolUnresponsiveError: the mount did not answer within the deadline.
            PoolReadError: the path cannot be accessed.
        """
        answer = await self._request("statfs", path, mount)
        try:
            figures = FileSystemFigures(*map(int, answer.split()))
        except (TypeError, ValueError) as error:
            raise PoolReadError(f"{path}: unexpected answer of the child process") from error
        self._figures.pop(path, None)
        self._figures[path] = time.monotonic(), figures
        if len(self._figures) > MAX_RECENT:
            del self._figures[next(iter(self._figures))]
        return figures

    def recent(self, path: str, seconds: float) -> FileSystemFigures | None:
        """Return the figures of the file system of a path if they were read within the last `seconds`."""
        at, figures = self._figures.get(path, (float("-inf"), None))
        return figures if time.monotonic() - at <= seconds else None

    async def realpath(self, path: str, mount: str) -> str:
        """Return a path without symbolic links; raises as `statvfs`."""
        answer = await self._request("realpath", path, mount)
        return os.fsdecode(bytes.fromhex(answer))

    async def _request(self, operation: str, path: str, mount: str) -> str:
        if mount in self._silent_since:
            raise PoolUnresponsiveError(f"{path}: the file system does not answer")
        request = _Request(f"{operation} {os.fsencode(path).hex()}\n".encode(), mount, time.monotonic())
        self._queue.append(request)
        if self._serving is None:
            self._serving = asyncio.create_task(self._serve(), name="read file systems")
        try:
            async with asyncio.timeout(self._deadline_seconds):
                answer = await asyncio.shield(request.answer)
        except TimeoutError:
            cause = f"{path}: the file system did not answer within {self._deadline_seconds:g} s"
            if not self.is_unresponsive(mount):
                raise PoolReadError(f"{cause}, because the host is overloaded") from None
            self.on_change()
            raise PoolUnresponsiveError(cause) from None
        state, _, result = answer.decode("ascii", "replace").partition(" ")
        if state == "ok":
            return result
        raise PoolReadError(f"{path}: {os.strerror(int(result)) if result.isdecimal() else result}")

    # The child.

    async def _serve(self) -> None:
        """Pass the queued requests to a child until none is left."""
        try:
            while batch := self._take_batch():
                try:
                    if self._child is None:
                        self._child = await Child.start(self._program)
                    await self._exchange(self._child, batch)
                except ChildError as error:
                    if self._child is not None:
                        self._child.kill()
                        self._child = None
                    for request in batch:
                        if not request.answer.done():
                            request.answer.set_exception(PoolReadError(str(error)))
        finally:
            self._serving = None

    def _take_batch(self) -> list[_Request]:
        batch: list[_Request] = []
        while self._queue and len(batch) < MAX_BATCH:
            request = self._queue.popleft()
            if request.mount not in self._silent_since:
                batch.append(request)
            elif not request.answer.done():
                request.answer.set_exception(PoolUnresponsiveError("the file system does not answer"))
        return batch

    async def _exchange(self, child: Child, batch: list[_Request]) -> None:
        """Send requests to a child and pass its answers on, until one is late.

        Raises:
            ChildError: the child has ended.
        """
        child.send(b"".join(request.line for request in batch))
        for index, request in enumerate(batch):
            try:
                async with asyncio.timeout(self._slow_seconds):
                    line = await child.read_line()
            except TimeoutError:
                self._set_aside(child, request)
                self._queue.extendleft(reversed(batch[index + 1 :]))
                return
            self._on_answer(request, line)

    def _on_answer(self, request: _Request, line: bytes) -> None:
        self._answered_at[request.mount] = time.monotonic()
        if not request.answer.done():
            request.answer.set_result(line)

    def _set_aside(self, child: Child, request: _Request) -> None:
        """Leave a child waiting for a mount."""
        self._child = None
        self._silent_since[request.mount] = request.sent_at
        if len(self._waiting) < MAX_WAITING:
            task = asyncio.create_task(self._wait_for(child, request), name="wait for a mount")
            self._waiting[request.mount] = child, task
        else:
            child.kill()
            asyncio.get_running_loop().call_later(RETRY_SECONDS, self._on_return, request.mount)
        self.on_change()

    async def _wait_for(self, child: Child, request: _Request) -> None:
        """Wait for a late answer for as long as it takes."""
        try:
            line = await child.read_line()
        except ChildError as error:
            if not request.answer.done():
                request.answer.set_exception(PoolReadError(str(error)))
        else:
            self._on_answer(request, line)
        finally:
            child.kill()  # it has further requests in its input
            self._waiting.pop(request.mount, None)
            self._on_return(request.mount)

    def _on_return(self, mount: str) -> None:
        self._silent_since.pop(mount, None)
        self.on_change()

    async def close(self) -> None:
        """End the children. Those that wait for storage may stay until it answers; the agent does not wait for them."""
        tasks = [task for _, task in self._waiting.values()]
        children = [child for child, _ in self._waiting.values()]
        tasks += [self._serving] if self._serving is not None else []
        children += [self._child] if self._child is not None else []
        self._child = None
        for child in children:
            child.kill()
        for task in tasks:
            task.cancel()
        ends = [asyncio.create_task(child.ended()) for child in children]
        await asyncio.gather(*tasks, return_exceptions=True)
        if ends:
            _, pending = await asyncio.wait(ends, timeout=END_SECONDS)
            for end in pending:
                end.cancel()
