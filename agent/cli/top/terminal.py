"""Terminal of `qmp-agent top`: draws with curses, reads keys, and polls the agent's endpoint."""

import asyncio
import contextlib
import curses
import json
import os
import signal
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from agent.cli.http_client import AgentRequestError, EndpointCredentials, find_vm_uuid_in_overview, request_json
from agent.cli.top import TopError
from agent.cli.top.detail import detail_lines
from agent.cli.top.screen_state import TopScreenState, TopView, current_view_lines
from agent.cli.top.text import ScreenLine, TextStyle

REQUEST_SECONDS = 5.0
"""Timeout in seconds of a request to the agent."""


@dataclass(frozen=True, slots=True)
class TopOptions:
    """The options of `qmp-agent top`.

    Attributes:
        url: the URL of the agent's endpoint.
        seconds: the refresh interval in seconds.
        vm: the name or UUID of the VM whose details are shown first; empty for the table of all VMs.
        view: the list that is shown first.
        filter: the filter of the VM table.
        sort: the name of the column that sorts the table; with a leading minus sign, the order is reversed.
        json: whether `print_once` prints JSON.
        credentials: credentials for the endpoint.
    """

    url: str
    seconds: float = 2.0
    vm: str = ""
    view: TopView = TopView.VMS
    filter: str = ""
    sort: str = "cpu"
    json: bool = False
    credentials: EndpointCredentials = field(default_factory=EndpointCredentials)


def _new_screen(options: TopOptions, host: Mapping[str, Any]) -> TopScreenState:
    """Return a screen with the list, the filter and the order in the options."""
    name, is_reversed = options.sort.removeprefix("-"), options.sort.startswith("-")
    return TopScreenState(host, view=options.view, filter=options.filter, sort=name, reverse=is_reversed)


async def print_once(options: TopOptions) -> None:
    """Print the list in the options once, or the details of the VM in the options.

    Raises:
        AgentRequestError: no agent answers.
        TopError: the agent does not watch the VM in the options.
        EndpointCredentialsError: the credentials cannot be read.
    """
    host = await _fetch_overview(options, "")
    uuid = _find_uuid(host, options.vm)
    if uuid:
        host = await _fetch_overview(options, uuid)
    screen = _new_screen(options, host)
    alerts = [alert for alert in host["alerts"] if not uuid or alert["uuid"] == uuid]
    if options.json:
        shown: dict[str, Any] = {"vm": host["vms"].get(uuid), "detail": host.get("detail"), "alerts": alerts}
        if not uuid:
            shown = {**host, "vms": screen.filtered_vms()}
        lines = [json.dumps(shown, indent=1)]
    elif uuid:
        lines = [line.text for line in detail_lines(host["vms"][uuid], alerts, host["detail"]["families"], 0)]
    else:
        lines = [line.text for line in current_view_lines(screen, 0)]
    sys.stdout.writelines(f"{line}\n" for line in lines)


async def run_top(options: TopOptions) -> None:
    """Run `top` full-screen until the user quits.

    Raises:
        TopError: there is no terminal.
        AgentRequestError: no agent answers at the start.
        EndpointCredentialsError: the credentials cannot be read.
    """
    if not (sys.stdin.isatty() and sys.stdout.isatty()):
        raise TopError("standard input and output must be a terminal; --once prints a table without a terminal")
    screen = _new_screen(options, await _fetch_overview(options, ""))
    screen.opened_vm = screen.selected_vm = _find_uuid(screen.overview, options.vm)
    with _full_screen() as window:
        await _TopTerminal(options, screen, window).run()


async def _fetch_overview(options: TopOptions, uuid: str) -> Mapping[str, Any]:
    params = {"vm": uuid} if uuid else None
    return await request_json(
        options.credentials,
        "GET",
        options.url,
        "/overview",
        params=params,
        required={"vms": dict, "monitors": list, "alerts": list, "agent": dict},
        seconds=REQUEST_SECONDS,
    )


def _find_uuid(host: Mapping[str, Any], name: str) -> str:
    """Return the UUID of the VM with this name or UUID; empty if `name` is empty.

    Raises:
        TopError: no VM has this name or UUID.
    """
    uuid = find_vm_uuid_in_overview(host, name) if name else ""
    if name and not uuid:
        raise TopError(f"the agent watches no VM named {name}")
    return uuid


_COLOURS = {TextStyle.BAD: curses.COLOR_RED, TextStyle.WARNING: curses.COLOR_YELLOW}
_KEY_NAMES = {
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
def _full_screen() -> Iterator[curses.window]:
    """Switch the terminal to full-screen mode while the `with` block runs.

    Raises:
        TopError: curses does not support this terminal.
    """
    # Milliseconds to wait for the rest of an escape sequence. `top` also uses the Esc key alone.
    os.environ.setdefault("ESCDELAY", "25")
    try:
        window = curses.initscr()
        curses.start_color()
        curses.use_default_colors()
    except curses.error as error:
        raise TopError(f"this terminal is not supported ({error}); --once prints a table without a terminal") from error
    try:
        curses.noecho()
        curses.cbreak()
        with contextlib.suppress(curses.error):
            curses.curs_set(0)
        window.keypad(True)  # noqa: FBT003 - curses' own signature
        window.nodelay(True)  # noqa: FBT003 - as above
        for number, colour in enumerate(_COLOURS.values(), 1):
            curses.init_pair(number, colour, -1)
        yield window
    finally:
        window.keypad(False)  # noqa: FBT003 - as above
        curses.endwin()


class _TopTerminal:
    def __init__(self, options: TopOptions, screen: TopScreenState, window: curses.window) -> None:
        self._options = options
        self._screen = screen
        self._window = window
        self._changed = asyncio.Event()
        self._refresh_now = asyncio.Event()  # set when the user opens or closes a VM
        styles = {style: curses.color_pair(number) for number, style in enumerate(_COLOURS, 1)}
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
            opened = self._screen.opened_vm
            try:
                self._screen.overview, self._screen.error = await _fetch_overview(self._options, opened), ""
            except AgentRequestError as error:
                self._screen.error = str(error)
            self._changed.set()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self._options.seconds):
                    await self._refresh_now.wait()
            self._refresh_now.clear()

    def _on_input(self) -> None:
        opened = self._screen.opened_vm
        while (code := self._window.getch()) != curses.ERR:
            self._screen.on_key(_KEY_NAMES.get(code, chr(code) if 32 <= code < 127 else ""))
        if self._screen.opened_vm != opened:
            self._refresh_now.set()
        self._changed.set()

    def _on_resize(self) -> None:
        size = os.get_terminal_size(sys.stdout.fileno())
        curses.resizeterm(size.lines, size.columns)
        self._changed.set()

    def _draw(self) -> None:
        height, width = self._window.getmaxyx()
        self._window.erase()
        for row, line in enumerate(self._screen.render(width, height)):
            self._draw_line(row, line)
        self._window.refresh()

    def _draw_line(self, row: int, line: ScreenLine) -> None:
        # curses draws the screen's last cell, but then raises an error.
        with contextlib.suppress(curses.error):
            self._window.addstr(row, 0, line.text, self._styles[line.style])
