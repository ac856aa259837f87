"""The terminal: curses on asyncio's loop, and the agent's endpoint asked every few seconds."""

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

ASK_SECONDS = 5.0
"""How long the agent may take to answer."""


@dataclass(frozen=True, slots=True)
class TopOptions:
    """What is wanted.

    Attributes:
        url: the agent's endpoint.
        seconds: how often to look.
        vm: the name or UUID of a VM to be shown in detail; empty is the table.
        visitor: who asks.
    """

    url: str
    seconds: float = 2.0
    vm: str = ""
    visitor: EndpointCredentials = field(default_factory=EndpointCredentials)


async def once(view: TopOptions) -> None:
    """Print the table, or a VM in detail, and return.

    Raises:
        TopError: no agent answers, or it knows no such VM.
        VisitError: what the visitor should show is not there.
    """
    async with _session(view) as session:
        host = await _ask(session, view, "")
        uuid = _uuid(host, view.vm)
        screen = TopScreen(host)
        if uuid:
            host = await _ask(session, view, uuid)
            alerts = [alert for alert in host["alerts"] if alert["uuid"] == uuid]
            lines = list(detail(host["vms"][uuid], alerts, host["detail"]["families"], 0))
        else:
            lines = table(screen.vms(), 0)
    sys.stdout.writelines(f"{line.text}\n" for line in lines)


async def show(view: TopOptions) -> None:
    """Show them until told to quit.

    Raises:
        TopError: it is no terminal, or no agent answers at the start.
        VisitError: what the visitor should show is not there.
    """
    if not (sys.stdin.isatty() and sys.stdout.isatty()):
        raise TopError("this is no terminal: --once prints a table")
    async with _session(view) as session:
        screen = TopScreen(await _ask(session, view, ""))
        screen.opened = screen.chosen = _uuid(screen.host, view.vm)
        with _curses() as window:
            await _TopTerminal(view, session, screen, window).run()


def _session(view: TopOptions) -> aiohttp.ClientSession:
    return view.visitor.session(timeout=aiohttp.ClientTimeout(total=ASK_SECONDS))


async def _ask(session: aiohttp.ClientSession, view: TopOptions, uuid: str) -> Mapping[str, Any]:
    try:
        async with session.get(f"{view.url}/overview", params={"vm": uuid} if uuid else None) as response:
            if response.status != 200:
                raise TopError(f"{view.url} refuses: {(await response.text()).strip()[:200]}")
            host: Mapping[str, Any] = await response.json()
            return host
    except (aiohttp.ClientError, TimeoutError, ValueError) as error:
        raise TopError(
            f"no agent answers at {view.url}: {error or 'it takes too long'}; is it running, with this web.listen_address?"
        ) from error


def _uuid(host: Mapping[str, Any], name: str) -> str:
    """Return the UUID of the VM of that name or UUID; empty for an empty name."""
    found = [uuid for uuid, vm in host["vms"].items() if name in (uuid, vm["name"])]
    if name and not found:
        raise TopError(f"the agent knows no VM {name}")
    return found[0] if name else ""


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
    """Take the terminal for as long as the block runs, and give it back however that ends.

    Raises:
        TopError: curses does not know this terminal.
    """
    os.environ.setdefault("ESCDELAY", "25")  # milliseconds: Esc alone is a key here
    try:
        window = curses.initscr()
        curses.start_color()
        curses.use_default_colors()
    except curses.error as error:
        raise TopError(f"this terminal cannot be used ({error}): --once prints a table") from error
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
        self, view: TopOptions, session: aiohttp.ClientSession, screen: TopScreen, window: curses.window
    ) -> None:
        self._view = view
        self._session = session
        self._screen = screen
        self._window = window
        self._changed = asyncio.Event()
        self._wanted = asyncio.Event()  # another VM's figures, now
        looks = {look: curses.color_pair(number) for number, look in enumerate(_PAIRS, 1)}
        looks |= {TextStyle.PLAIN: curses.A_NORMAL, TextStyle.HEAD: curses.A_BOLD, TextStyle.SOFT: curses.A_DIM}
        self._looks = looks | {TextStyle.CHOSEN: curses.A_REVERSE}

    async def run(self) -> None:
        loop = asyncio.get_running_loop()
        loop.add_reader(sys.stdin.fileno(), self._typed)
        loop.add_signal_handler(signal.SIGWINCH, self._resized)
        asking = asyncio.create_task(self._keep_asking(), name="ask")
        try:
            while not self._screen.ended:
                self._draw()
                changed = asyncio.ensure_future(self._changed.wait())
                await asyncio.wait({changed, asking}, return_when=asyncio.FIRST_COMPLETED)
                changed.cancel()
                if asking.done():
                    asking.result()
                self._changed.clear()
        finally:
            asking.cancel()
            loop.remove_reader(sys.stdin.fileno())
            loop.remove_signal_handler(signal.SIGWINCH)

    async def _keep_asking(self) -> None:
        while True:
            opened = self._screen.opened
            try:
                self._screen.host, self._screen.trouble = await _ask(self._session, self._view, opened), ""
            except TopError as error:
                self._screen.trouble = str(error)
            self._changed.set()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self._view.seconds):
                    await self._wanted.wait()
            self._wanted.clear()

    def _typed(self) -> None:
        opened = self._screen.opened
        while (code := self._window.getch()) != curses.ERR:
            self._screen.key(_KEYS.get(code, chr(code) if 32 <= code < 127 else ""))
        if self._screen.opened != opened:
            self._wanted.set()
        self._changed.set()

    def _resized(self) -> None:
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
        with contextlib.suppress(curses.error):  # the last cell of the screen cannot be written without one
            self._window.addstr(row, 0, line.text, self._looks[line.look])
