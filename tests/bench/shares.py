"""Where the CPU time of an agent goes: each part's own time, on the thread that runs it.

The parts are wrapped at the seams between packages. A part that calls another one is not charged for it.
"""

import functools
import inspect
import time
from collections import defaultdict
from collections.abc import Callable, Generator
from typing import Any


class Shares:
    """CPU seconds by part.

    Attributes:
        seconds: the seconds.
    """

    def __init__(self) -> None:
        self.seconds: defaultdict[str, float] = defaultdict(float)
        self._inner = 0.0

    def reset(self) -> None:
        """Start again at zero."""
        self.seconds.clear()

    def wrap(self, owner: Any, name: str, part: str) -> None:
        """Charge a part for a function of a class or a module; of a coroutine function, for each of its steps."""
        original = getattr(owner, name)
        if inspect.iscoroutinefunction(original):

            async def coroutine(*args: Any, **kwargs: Any) -> Any:
                return await _Steps(self, part, original(*args, **kwargs))

            setattr(owner, name, functools.wraps(original)(coroutine))
        else:

            def call(*args: Any, **kwargs: Any) -> Any:
                return self._charge(part, functools.partial(original, *args, **kwargs))

            setattr(owner, name, functools.wraps(original)(call))

    def wrap_in_thread(self, owner: Any, name: str, part: str) -> None:
        """Charge a part for a function that another thread runs."""
        original = getattr(owner, name)

        def call(*args: Any, **kwargs: Any) -> Any:
            begun = time.thread_time()
            try:
                return original(*args, **kwargs)
            finally:
                self.seconds[part] += time.thread_time() - begun

        setattr(owner, name, call)

    def _charge(self, part: str, call: Callable[[], Any]) -> Any:
        outer, self._inner = self._inner, 0.0
        begun = time.thread_time()
        try:
            return call()
        finally:
            spent = time.thread_time() - begun
            self.seconds[part] += spent - self._inner
            self._inner = outer + spent


class _Steps:
    """Awaits a coroutine and charges a part for each of its steps."""

    def __init__(self, shares: Shares, part: str, coroutine: Any) -> None:
        self._shares = shares
        self._part = part
        self._coroutine = coroutine

    def __await__(self) -> Generator[Any, Any, Any]:
        steps = self._coroutine.__await__()
        resume: Callable[[], Any] = functools.partial(next, steps)
        while True:
            try:
                waits_for = self._shares._charge(self._part, resume)
            except StopIteration as end:
                return end.value
            try:
                resume = functools.partial(steps.send, (yield waits_for))
            except BaseException as error:  # noqa: BLE001 - such as a cancellation, which the coroutine gets
                resume = functools.partial(steps.throw, error)
