"""The state of the screen. It takes overviews and keys, and returns lines. Pure."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from agent.cli.top.columns import COLUMNS, Column, Vm, by_column, state
from agent.cli.top.detail import detail
from agent.cli.top.text import ScreenLine, TextStyle, fit, wrapped

MIN_NAME_WIDTH = 12
KEYS = "q quit  Enter detail  / filter  < > or a column's key: sort  R reverse  ? keys"


@dataclass
class TopScreen:
    """The screen.

    Attributes:
        host: the last overview; empty before the first.
        error: why the last request failed, or empty.
        selected: the UUID of the VM that the selection bar is on.
        opened: the UUID of the VM whose details are shown; empty shows the table.
        ended: whether the user quit.
    """

    host: Mapping[str, Any] = field(default_factory=dict)
    error: str = ""
    selected: str = ""
    opened: str = ""
    ended: bool = False
    _sort: str = "CPU%"
    _reverse: bool = False
    _filter: str = ""
    _typing: bool = False
    _keys: bool = False
    _top: int = 0
    _page: int = 10

    def vms(self) -> list[Vm]:
        """Return the visible VMs in order."""
        firing = [alert["uuid"] for alert in self.host.get("alerts", ())]
        words = self._filter.lower().split()
        all_vms = [vm | {"alerts": firing.count(uuid)} for uuid, vm in self.host.get("vms", {}).items()]
        visible = [vm for vm in all_vms if all(w in f"{vm['name']} {vm['uuid']} {state(vm)}".lower() for w in words)]
        shown = columns(visible)
        by = next((column for column in shown if column.title == self._sort), shown[0])
        return by_column(visible, by, reverse=self._reverse)

    def key(self, name: str) -> None:
        """Handle a key: a character, or UP, DOWN, PAGE_UP, PAGE_DOWN, HOME, END, ENTER, ESCAPE, BACKSPACE."""
        if self._typing:
            self._type(name)
        elif name in ("UP", "DOWN", "PAGE_UP", "PAGE_DOWN", "HOME", "END", "k", "j"):
            self._move(name)
        elif name == "q":
            self.ended = True
        elif name == "?":
            self._keys = not self._keys
        elif self.opened or self._keys:
            if name in ("ESCAPE", "BACKSPACE", "ENTER", "LEFT"):
                self.opened, self._top, self._keys = "", 0, False
        else:
            self._table(name)

    def _type(self, name: str) -> None:
        if name in ("ENTER", "ESCAPE"):
            self._typing = False
            self._filter = "" if name == "ESCAPE" else self._filter
        elif name == "BACKSPACE":
            self._filter = self._filter[:-1]
        elif len(name) == 1 and name.isprintable() and len(self._filter) < 100:
            self._filter += name

    def _move(self, name: str) -> None:
        steps = {"UP": -1, "k": -1, "DOWN": 1, "j": 1, "PAGE_UP": -self._page, "PAGE_DOWN": self._page}
        step = steps.get(name, 1_000_000 if name == "END" else -1_000_000)
        if self.opened:
            self._top = max(0, self._top + step)
            return
        order = [vm["uuid"] for vm in self.vms()]
        if order:
            at = order.index(self.selected) if self.selected in order else 0
            self.selected = order[min(max(0, at + step), len(order) - 1)]

    def _table(self, name: str) -> None:
        shown = columns(self.vms())
        titles = [column.title for column in shown]
        at = titles.index(self._sort) if self._sort in titles else 0
        match name:
            case "/":
                self._typing = True
            case "R":
                self._reverse = not self._reverse
            case "<" | ">":
                self._sort = titles[(at + (1 if name == ">" else -1)) % len(titles)]
            case "ENTER" | "RIGHT":
                self.opened, self._top = self.selected, 0
            case "ESCAPE":
                self._filter = ""
            case _:
                self._sort = next((column.title for column in shown if column.key == name), self._sort)

    def lines(self, width: int, height: int) -> list[ScreenLine]:
        """Return the lines of the screen.

        Args:
            width: the width of the screen in characters.
            height: the number of lines.
        """
        head = [ScreenLine(fit(self._summary(), width)), self._problems(width)]
        foot = (
            f"Filter: {self._filter}_"
            if self._typing
            else f"{KEYS}{f'  (filter: {self._filter})' if self._filter else ''}"
        )
        room = max(0, height - len(head) - 1)
        self._page = max(1, room - 2)
        body = (
            self._help(width) if self._keys else self._detail(width, room) if self.opened else self._rows(width, room)
        )
        body = body[:room] + [ScreenLine("")] * (room - len(body))
        return [*head, *body, ScreenLine(fit(foot, width), TextStyle.SOFT)][:height]

    def _summary(self) -> str:
        agent = self.host.get("agent")
        if agent is None:
            return "qmp-agent top"
        monitors = [monitor["state"] for monitor in self.host["monitors"]]
        states = ", ".join(f"{monitors.count(name)} {name}" for name in dict.fromkeys(sorted(monitors)))
        counts = f"{len(self.host['vms'])} VMs   monitors: {states or 'none'}   alerts: {len(self.host['alerts'])}"
        return f"{agent['host']}   {counts}"

    def _problems(self, width: int) -> ScreenLine:
        """Return a line with the connection's error, else with the agent's problems and warnings."""
        agent = self.host.get("agent", {})
        reasons = [self.error] if self.error else agent.get("unready_reasons", [])
        if reasons:
            return ScreenLine(fit("; ".join(reasons), width), TextStyle.BAD)
        warnings = agent.get("warnings", [])
        return ScreenLine(fit("; ".join(warnings), width), TextStyle.WARNING) if warnings else ScreenLine("")

    def _rows(self, width: int, room: int) -> list[ScreenLine]:
        shown = self.vms()
        order = [vm["uuid"] for vm in shown]
        if self.selected not in order:
            self.selected = order[0] if order else ""
        at = order.index(self.selected) if order else 0
        rows = max(1, room - 1)
        self._top = min(max(self._top, at - rows + 1, 0), at)
        head, *lines = table(shown, width, self._sort)
        visible = list(zip(lines, shown, strict=True))[self._top : self._top + rows]
        return [head, *(self._mark(line, vm) for line, vm in visible)]

    def _mark(self, line: ScreenLine, vm: Vm) -> ScreenLine:
        return ScreenLine(line.text, TextStyle.SELECTED) if vm["uuid"] == self.selected else line

    def _detail(self, width: int, room: int) -> list[ScreenLine]:
        details = self.host.get("detail") or {}
        vm = self.host.get("vms", {}).get(self.opened)
        if vm is None:
            return [ScreenLine("This VM is gone. Press Esc to go back.")]
        alerts = [alert for alert in self.host["alerts"] if alert["uuid"] == self.opened]
        lines = list(
            detail(vm, alerts, details.get("families", ()) if details.get("uuid") == self.opened else (), width)
        )
        self._top = min(self._top, max(0, len(lines) - room))
        return lines[self._top :]

    def _help(self, width: int) -> list[ScreenLine]:
        sorts = [f"{column.key} {column.title}" for column in COLUMNS]
        return [
            ScreenLine(fit(row, width))
            for row in ("Sort by:", *wrapped(sorts, width), "", *wrapped(KEYS.split("  "), width))
        ]


def columns(vms: Sequence[Vm]) -> list[Column]:
    """Return the first two columns, and the other columns that have a value for at least one VM."""
    rest = (column for column in COLUMNS[2:] if any(column.value(vm) is not None for vm in vms))
    return [*COLUMNS[:2], *rest]


def table(vms: Sequence[Vm], width: int, sort: str = "") -> list[ScreenLine]:
    """Return the VMs as a table with a heading.

    Args:
        vms: the VMs.
        width: the width in characters, for which the last columns may be left out; 0 does not limit it.
        sort: the title of the column to mark as sorted.
    """
    shown = columns(vms)
    longest = max((len(str(vm["name"])) for vm in vms), default=0)
    while width and len(shown) > 2 and sum(c.width + 1 for c in shown[1:]) + MIN_NAME_WIDTH > width:
        shown.pop()
    fixed = sum(column.width + 1 for column in shown[1:])
    name = max(MIN_NAME_WIDTH, longest) if not width else max(1, min(max(MIN_NAME_WIDTH, longest), width - fixed))

    def line(texts: Sequence[str]) -> str:
        cells = [fit(texts[0], name)]
        cells += [
            fit(text, c.width, right=c.descending or c.title in ("FREE", "FULL"))
            for text, c in zip(texts[1:], shown[1:], strict=True)
        ]
        row = " ".join(cells)
        return fit(row, width) if width else row.rstrip()

    lines = [ScreenLine(line([f"{c.title}*" if c.title == sort else c.title for c in shown]), TextStyle.HEAD)]
    return lines + [ScreenLine(line([c.text(c.value(vm)) for c in shown]), _style(vm)) for vm in vms]


def _style(vm: Vm) -> TextStyle:
    if vm["state"] != "up" or state(vm) in ("io-error", "internal-error", "guest-panicked"):
        return TextStyle.BAD
    return TextStyle.WARNING if vm["alerts"] else TextStyle.PLAIN
