"""What the screen shows and what a key does to it. Pure: the host's overview and keys in, lines out."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from agent.cli.top.columns import COLUMNS, Column, Vm, by_column, state
from agent.cli.top.detail import detail
from agent.cli.top.text import ScreenLine, TextStyle, fit, wrapped

NAME_LEAST = 12
KEYS = "q quit  Enter detail  / filter  < > or a column's key: sort  R reverse  ? keys"


@dataclass
class TopScreen:
    """One who looks.

    Attributes:
        host: the last overview; empty until there is one.
        trouble: why there is no newer one; empty where there is.
        chosen: the UUID of the VM that the bar is on.
        opened: the UUID of the VM that is shown in detail; empty is the table.
        ended: whether it was told to quit.
    """

    host: Mapping[str, Any] = field(default_factory=dict)
    trouble: str = ""
    chosen: str = ""
    opened: str = ""
    ended: bool = False
    _sort: str = "CPU%"
    _reverse: bool = False
    _filter: str = ""
    _typing: bool = False
    _keys: bool = False
    _top: int = 0
    _page: int = 10

    # What there is.

    def vms(self) -> list[Vm]:
        """Return the VMs that are shown, in order."""
        firing = [alert["uuid"] for alert in self.host.get("alerts", ())]
        words = self._filter.lower().split()
        all_vms = [vm | {"alerts": firing.count(uuid)} for uuid, vm in self.host.get("vms", {}).items()]
        found = [vm for vm in all_vms if all(w in f"{vm['name']} {vm['uuid']} {state(vm)}".lower() for w in words)]
        there = columns(found)
        by = next((column for column in there if column.title == self._sort), there[0])
        return by_column(found, by, reverse=self._reverse)

    # Keys.

    def key(self, name: str) -> None:
        """Take a key: a character, or UP, DOWN, PAGE_UP, PAGE_DOWN, HOME, END, ENTER, ESCAPE, BACKSPACE."""
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
            at = order.index(self.chosen) if self.chosen in order else 0
            self.chosen = order[min(max(0, at + step), len(order) - 1)]

    def _table(self, name: str) -> None:
        there = columns(self.vms())
        titles = [column.title for column in there]
        at = titles.index(self._sort) if self._sort in titles else 0
        match name:
            case "/":
                self._typing = True
            case "R":
                self._reverse = not self._reverse
            case "<" | ">":
                self._sort = titles[(at + (1 if name == ">" else -1)) % len(titles)]
            case "ENTER" | "RIGHT":
                self.opened, self._top = self.chosen, 0
            case "ESCAPE":
                self._filter = ""
            case _:
                self._sort = next((column.title for column in there if column.key == name), self._sort)

    # Lines.

    def lines(self, width: int, height: int) -> list[ScreenLine]:
        """Return what fills a screen of that size, at most so many lines of at most so many columns."""
        head = [
            ScreenLine(fit(self._summary(), width)),
            ScreenLine(fit(self.trouble, width), TextStyle.BAD) if self.trouble else ScreenLine(""),
        ]
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
        monitors = [one["state"] for one in self.host["monitors"]]
        states = ", ".join(f"{monitors.count(name)} {name}" for name in dict.fromkeys(sorted(monitors)))
        troubles = "; ".join(agent["unready_reasons"])
        said = f"{agent['host']}   {len(self.host['vms'])} VMs   monitors: {states or 'none'}   alerts: {len(self.host['alerts'])}"
        return f"{said}   {troubles}" if troubles else said

    def _rows(self, width: int, room: int) -> list[ScreenLine]:
        shown = self.vms()
        order = [vm["uuid"] for vm in shown]
        if self.chosen not in order:
            self.chosen = order[0] if order else ""
        at = order.index(self.chosen) if order else 0
        rows = max(1, room - 1)
        self._top = min(max(self._top, at - rows + 1, 0), at)
        head, *lines = table(shown, width, self._sort)
        both = list(zip(lines, shown, strict=True))[self._top : self._top + rows]
        return [head, *(self._mark(line, vm) for line, vm in both)]

    def _mark(self, line: ScreenLine, vm: Vm) -> ScreenLine:
        return ScreenLine(line.text, TextStyle.CHOSEN) if vm["uuid"] == self.chosen else line

    def _detail(self, width: int, room: int) -> list[ScreenLine]:
        said = self.host.get("detail") or {}
        vm = self.host.get("vms", {}).get(self.opened)
        if vm is None:
            return [ScreenLine("This VM is gone. Esc goes back.")]
        alerts = [alert for alert in self.host["alerts"] if alert["uuid"] == self.opened]
        lines = list(detail(vm, alerts, said.get("families", ()) if said.get("uuid") == self.opened else (), width))
        self._top = min(self._top, max(0, len(lines) - room))
        return lines[self._top :]

    def _help(self, width: int) -> list[ScreenLine]:
        sorts = [f"{column.key} {column.title}" for column in COLUMNS]
        return [
            ScreenLine(fit(row, width))
            for row in ("Sort by:", *wrapped(sorts, width), "", *wrapped(KEYS.split("  "), width))
        ]


def columns(vms: Sequence[Vm]) -> list[Column]:
    """Return the columns that some VM has something for; the first two always."""
    rest = (column for column in COLUMNS[2:] if any(column.value(vm) is not None for vm in vms))
    return [*COLUMNS[:2], *rest]


def table(vms: Sequence[Vm], width: int, sort: str = "") -> list[ScreenLine]:
    """Return the VMs as a table with its head; of a width of 0, as wide as it takes. Where it is narrow, the last columns are left out."""
    there = columns(vms)
    longest = max((len(str(vm["name"])) for vm in vms), default=0)
    while width and len(there) > 2 and sum(c.width + 1 for c in there[1:]) + NAME_LEAST > width:
        there.pop()
    fixed = sum(column.width + 1 for column in there[1:])
    name = max(NAME_LEAST, longest) if not width else max(1, min(max(NAME_LEAST, longest), width - fixed))

    def line(texts: Sequence[str]) -> str:
        cells = [fit(texts[0], name)]
        cells += [
            fit(text, c.width, right=c.most_first or c.title in ("FREE", "FULL"))
            for text, c in zip(texts[1:], there[1:], strict=True)
        ]
        said = " ".join(cells)
        return fit(said, width) if width else said.rstrip()

    lines = [ScreenLine(line([f"{c.title}*" if c.title == sort else c.title for c in there]), TextStyle.HEAD)]
    return lines + [ScreenLine(line([c.text(c.value(vm)) for c in there]), _look(vm)) for vm in vms]


def _look(vm: Vm) -> TextStyle:
    if vm["state"] != "up" or state(vm) in ("io-error", "internal-error", "guest-panicked"):
        return TextStyle.BAD
    return TextStyle.WARNING if vm["alerts"] else TextStyle.PLAIN
