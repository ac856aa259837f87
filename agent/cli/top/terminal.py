"""The terminal: curses on asyncio's loop, and requests to the agent's endpoint every few seconds."""

import asyncio
import contextlib
import curses
import os
import signal
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import aiohttp

from agent.cli.http_client import EndpointCredentials
from agent.cli.top import TopError
from agent.cli.top.detail import detail
from agent.cli.top.screen import TopScreen, table
from agent.cli.top.text import ScreenLine, TextStyle

REQUEST_SECONDS = 5.0
"""Timeout of a request to the agent."""


@dataclass(frozen=True, slots=True)
class TopOptions:
    """The options of `qmp-agent top`.

    Attributes:
        url: the agent's endpoint.
        seconds: the refresh interval.
        vm: the name or UUID of a VM whose details to show; empty shows the table.
        credentials: credentials for the endpoint.
    """

    url: str
    seconds: float = 2.0
    vm: str = ""
    credentials: EndpointCredentials = field(default_factory=EndpointCredentials)


async def once(options: TopOptions) -> None:
    """Print the table or the details of a VM, and return.

    Raises:
        TopError: no agent answers, or it watches no such VM.
        EndpointCredentialsError: the credentials cannot be read.
    """
    async with _session(options) as session:
        host = await _fetch(session, options, "")
        uuid = _uuid(host, options.vm)
        screen = TopScreen(host)
        if uuid:
            host = await _fetch(session, options, uuid)
            alerts = [alert for alert in host["alerts"] if alert["uuid"] == uuid]
            lines = list(detail(host["vms"][uuid], alerts, host["detail"]["families"], 0))
        else:
            lines = table(screen.vms(), 0)
    sys.stdout.writelines(f"{line.text}\n" for line in lines)


async def show(options: TopOptions) -> None:
    """Show the screen until the user quits.

    Raises:
        TopError: there is no terminal, or no agent answers at the start.
        EndpointCredentialsError: the credentials cannot be read.
    """
    if not (sys.stdin.isatty() and sys.stdout.isatty()):
        raise TopError("standard input and output must be a terminal; --once prints a table without one")
    async with _session(options) as session:
        screen = TopScreen(await _fetch(session, options, ""))
        screen.opened = screen.selected = _uuid(screen.host, options.vm)
        with _curses() as window:
            await _TopTerminal(options, session, screen, window).run()


def _session(options: TopOptions) -> aiohttp.ClientSession:
    return options.credentials.session(timeout=aiohttp.ClientTimeout(total=REQUEST_SECONDS))


async def _fetch(session: aiohttp.ClientSession, options: TopOptions, uuid: str) -> Mapping[str, Any]:
    try:
        async with session.get(f"{options.url}/overview", params={"vm": uuid} if uuid else None) as response:
            if response.status != 200:
                raise TopError(f"{options.url}: HTTP {response.status}: {(await response.text()).strip()[:200]}")
            host: Mapping[str, Any] = await response.json()
            return host
    except (aiohttp.ClientError, TimeoutError, ValueError) as error:
        raise TopError(
            f"no agent answers at {options.url}: {error or 'timeout'}; is it running with this web.listen_address?"
        ) from error


def _uuid(host: Mapping[str, Any], name: str) -> str:
    """Return the UUID of the VM of that name or UUID; empty for an empty name."""
    uuids = [uuid for uuid, vm in host["vms"].items() if name in (uuid, vm["name"])]
    if name and not uuids:
        raise TopError(f"the agent watches no VM named {name}")
    return uuids[0] if name else ""


_PAIRS = {TextStyle.BAD: curses.COLOR_RED, TextStyle.WARNING: curses.COLOR_YELLOW}
_KEYS = {
    curses.KEY_UP: "UP",
    curses.KEY_DOWN: "DOWN",
    curses.KEY_LEFT: "LEFT",
    curses.KEY_RIGHT: "RIGHT",
    curses.KEY_PPAGE: "PAGE_UP",
    curses.KEY_NPAGE: "PAGE_DOWN",
    curses.KEY_HOME: "HOME",
    curses.KEY_END: "END",
    curses.KEY_ENTER: "ENTER",
    curses.KEY_BACKSPACE: "BACKSPACE",
    10: "ENTER",
    13: "ENTER",
    27: "ESCAPE",
    8: "BACKSPACE",
    127: "BACKSPACE",
}


@contextlib.contextmanager
def _curses() -> Iterator[curses.window]:
    """Switch the terminal to full-screen mode while the block runs.

    Raises:
        TopError: curses does not support this terminal.
    """
    os.environ.setdefault("ESCDELAY", "25")  # milliseconds; Esc alone is a key of `top`
    try:
        window = curses.initscr()
        curses.start_color()
        curses.use_default_colors()
    except curses.error as error:
        raise TopError(f"this terminal is not supported ({error}); --once prints a table without one") from error
    try:
        curses.noecho()
        curses.cbreak()
        with contextlib.suppress(curses.error):
            curses.curs_set(0)
        window.keypad(True)  # noqa: FBT003 - curses' own signature
        window.nodelay(True)  # noqa: FBT003 - as above
        for number, colour in enumerate(_PAIRS.values(), 1):
            curses.init_pair(number, colour, -1)
        yield window
    finally:
        window.keypad(False)  # noqa: FBT003 - as above
        curses.endwin()


class _TopTerminal:
    def __init__(
        self, options: TopOptions, session: aiohttp.ClientSession, screen: TopScreen, window: curses.window
    ) -> None:
        self._options = options
        self._session = session
        self._screen = screen
        self._window = window
        self._changed = asyncio.Event()
        self._refresh = asyncio.Event()  # set to refresh at once, for another VM
        styles = {style: curses.color_pair(number) for number, style in enumerate(_PAIRS, 1)}
        styles |= {TextStyle.PLAIN: curses.A_NORMAL, TextStyle.HEAD: curses.A_BOLD, TextStyle.SOFT: curses.A_DIM}
        self._styles = styles | {TextStyle.SELECTED: curses.A_REVERSE}

    async def run(self) -> None:
        loop = asyncio.get_running_loop()
        loop.add_reader(sys.stdin.fileno(), self._on_input)
        loop.add_signal_handler(signal.SIGWINCH, self._on_resize)
        fetching = asyncio.create_task(self._keep_fetching(), name="fetch")
        try:
            while not self._screen.ended:
                self._draw()
                changed = asyncio.ensure_future(self._changed.wait())
                await asyncio.wait({changed, fetching}, return_when=asyncio.FIRST_COMPLETED)
                changed.cancel()
                if fetching.done():
                    fetching.result()
                self._changed.clear()
        finally:
            fetching.cancel()
            loop.remove_reader(sys.stdin.fileno())
            loop.remove_signal_handler(signal.SIGWINCH)

    async def _keep_fetching(self) -> None:
        while True:
            opened = self._screen.opened
            try:
                self._screen.host, self._screen.error = await _fetch(self._session, self._options, opened), ""
            except TopError as error:
                self._screen.error = str(error)
            self._changed.set()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self._options.seconds):
                    await self._refresh.wait()
            self._refresh.clear()

    def _on_input(self) -> None:
        opened = self._screen.opened
        while (code := self._window.getch()) != curses.ERR:
            self._screen.key(_KEYS.get(code, chr(code) if 32 <= code < 127 else ""))
        if self._screen.opened != opened:
            self._refresh.set()
        self._changed.set()

    def _on_resize(self) -> None:
        size = os.get_terminal_size(sys.stdout.fileno())
        curses.resizeterm(size.lines, size.columns)
        self._changed.set()

    def _draw(self) -> None:
        height, width = self._window.getmaxyx()
        self._window.erase()
        for row, line in enumerate(self._screen.lines(width, height)):
            self._put(row, line)
        self._window.refresh()

    def _put(self, row: int, line: ScreenLine) -> None:
        with contextlib.suppress(curses.error):  # writing the last cell of the screen raises one
            self._window.addstr(row, 0, line.text, self._styles[line.style])
