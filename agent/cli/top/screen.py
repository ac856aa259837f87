"""The state of the screen. It receives overviews and pressed keys, and returns the lines to draw. Pure."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from agent.cli.top.columns import COLUMNS, Column, Vm, sort_by_column, state
from agent.cli.top.detail import detail
from agent.cli.top.pools import pool_lines
from agent.cli.top.text import ScreenLine, TextStyle, fit_to_width, wrap_words

MIN_NAME_WIDTH = 12
KEYS_TEXT = "q quit  Enter detail  / filter  < > or a column's key: sort  R reverse  S storage  ? keys"


@dataclass
class TopScreen:
    """The state of the screen.

    Attributes:
        host: the last received overview; empty before the first.
        error: why the last request to the agent failed; empty if it succeeded.
        selected: the UUID of the VM in the selected row of the table.
        opened: the UUID of the VM whose details are shown; empty while the table is shown.
        storage: whether the pools are shown instead of the VMs.
        ended: whether the user has quit.
    """

    host: Mapping[str, Any] = field(default_factory=dict)
    error: str = ""
    selected: str = ""
    opened: str = ""
    storage: bool = False
    ended: bool = False
    _sort_title: str = "CPU%"
    _reverse: bool = False
    _filter: str = ""
    _editing_filter: bool = False
    _showing_keys: bool = False
    _first_row: int = 0
    _page_rows: int = 10

    def vms(self) -> list[Vm]:
        """Return the VMs that match the filter, in the order of the table."""
        firing = [alert["uuid"] for alert in self.host.get("alerts", ())]
        words = self._filter.lower().split()
        all_vms = [vm | {"alerts": firing.count(uuid)} for uuid, vm in self.host.get("vms", {}).items()]
        visible = [vm for vm in all_vms if all(w in f"{vm['name']} {vm['uuid']} {state(vm)}".lower() for w in words)]
        shown = visible_columns(visible)
        sorted_column = next((column for column in shown if column.title == self._sort_title), shown[0])
        return sort_by_column(visible, sorted_column, reverse=self._reverse)

    def on_key(self, name: str) -> None:
        """Update the state after a key: a character, UP, DOWN, LEFT, RIGHT, PAGE_UP, PAGE_DOWN, HOME, END, ENTER, ESCAPE or BACKSPACE."""
        if self._editing_filter:
            self._edit_filter(name)
        elif name in ("UP", "DOWN", "PAGE_UP", "PAGE_DOWN", "HOME", "END", "k", "j"):
            self._move_selection(name)
        elif name == "q":
            self.ended = True
        elif name == "S" and not self.opened:
            self.storage, self._first_row = not self.storage, 0
        elif name == "?":
            self._showing_keys = not self._showing_keys
        elif self.opened or self._showing_keys or self.storage:
            if name in ("ESCAPE", "BACKSPACE", "ENTER", "LEFT"):
                self.opened, self._first_row, self._showing_keys, self.storage = "", 0, False, False
        else:
            self._on_table_key(name)

    def _edit_filter(self, name: str) -> None:
        if name in ("ENTER", "ESCAPE"):
            self._editing_filter = False
            self._filter = "" if name == "ESCAPE" else self._filter
        elif name == "BACKSPACE":
            self._filter = self._filter[:-1]
        elif len(name) == 1 and name.isprintable() and len(self._filter) < 100:
            self._filter += name

    def _move_selection(self, name: str) -> None:
        steps = {"UP": -1, "k": -1, "DOWN": 1, "j": 1, "PAGE_UP": -self._page_rows, "PAGE_DOWN": self._page_rows}
        step = steps.get(name, 1_000_000 if name == "END" else -1_000_000)
        if self.opened or self.storage:
            self._first_row = max(0, self._first_row + step)
            return
        order = [vm["uuid"] for vm in self.vms()]
        if order:
            at = order.index(self.selected) if self.selected in order else 0
            self.selected = order[min(max(0, at + step), len(order) - 1)]

    def _on_table_key(self, name: str) -> None:
        shown = visible_columns(self.vms())
        titles = [column.title for column in shown]
        at = titles.index(self._sort_title) if self._sort_title in titles else 0
        match name:
            case "/":
                self._editing_filter = True
            case "R":
                self._reverse = not self._reverse
            case "<" | ">":
                self._sort_title = titles[(at + (1 if name == ">" else -1)) % len(titles)]
            case "ENTER" | "RIGHT":
                self.opened, self._first_row = self.selected, 0
            case "ESCAPE":
                self._filter = ""
            case _:
                self._sort_title = next((column.title for column in shown if column.key == name), self._sort_title)

    def lines(self, width: int, height: int) -> list[ScreenLine]:
        """Return the lines of the screen. The first VM is selected if the selected VM is gone.

        Args:
            width: the width of the screen in characters.
            height: the number of lines.
        """
        head = [ScreenLine(fit_to_width(self._summary_text(), width)), self._problems_line(width)]
        foot = (
            f"Filter: {self._filter}_"
            if self._editing_filter
            else f"{KEYS_TEXT}{f'  (filter: {self._filter})' if self._filter else ''}"
        )
        room = max(0, height - len(head) - 1)
        self._page_rows = max(1, room - 2)
        body = (
            self._keys_lines(width)
            if self._showing_keys
            else self._detail_lines(width, room)
            if self.opened
            else self._pool_lines(width, room)
            if self.storage
            else self._table_lines(width, room)
        )
        body = body[:room] + [ScreenLine("")] * (room - len(body))
        return [*head, *body, ScreenLine(fit_to_width(foot, width), TextStyle.SOFT)][:height]

    def _summary_text(self) -> str:
        agent = self.host.get("agent")
        if agent is None:
            return "qmp-agent top"
        monitors = [monitor["state"] for monitor in self.host["monitors"]]
        states = ", ".join(f"{monitors.count(name)} {name}" for name in dict.fromkeys(sorted(monitors)))
        counts = f"{len(self.host['vms'])} VMs   monitors: {states or 'none'}   alerts: {len(self.host['alerts'])}"
        return f"{agent['host']}   {counts}"

    def _problems_line(self, width: int) -> ScreenLine:
        """Return a line with the failed request, else with the reasons why the agent is not ready, else with its warnings."""
        agent = self.host.get("agent", {})
        reasons = [self.error] if self.error else agent.get("unready_reasons", [])
        if reasons:
            return ScreenLine(fit_to_width("; ".join(reasons), width), TextStyle.BAD)
        warnings = agent.get("warnings", [])
        return ScreenLine(fit_to_width("; ".join(warnings), width), TextStyle.WARNING) if warnings else ScreenLine("")

    def _table_lines(self, width: int, room: int) -> list[ScreenLine]:
        shown = self.vms()
        order = [vm["uuid"] for vm in shown]
        if self.selected not in order:
            self.selected = order[0] if order else ""
        at = order.index(self.selected) if order else 0
        rows = max(1, room - 1)
        self._first_row = min(max(self._first_row, at - rows + 1, 0), at)
        head, *lines = table(shown, width, self._sort_title)
        visible = list(zip(lines, shown, strict=True))[self._first_row : self._first_row + rows]
        return [head, *(self._highlight_selected(line, vm) for line, vm in visible)]

    def _highlight_selected(self, line: ScreenLine, vm: Vm) -> ScreenLine:
        return ScreenLine(line.text, TextStyle.SELECTED) if vm["uuid"] == self.selected else line

    def _detail_lines(self, width: int, room: int) -> list[ScreenLine]:
        details = self.host.get("detail") or {}
        vm = self.host.get("vms", {}).get(self.opened)
        if vm is None:
            return [ScreenLine("This VM is gone. Press Esc to go back.")]
        alerts = [alert for alert in self.host["alerts"] if alert["uuid"] == self.opened]
        lines = list(
            detail(vm, alerts, details.get("families", ()) if details.get("uuid") == self.opened else (), width)
        )
        self._first_row = min(self._first_row, max(0, len(lines) - room))
        return lines[self._first_row :]

    def _pool_lines(self, width: int, room: int) -> list[ScreenLine]:
        head, *lines = pool_lines(self.host.get("pools", ()), width)
        self._first_row = min(self._first_row, max(0, len(lines) - room + 1))
        return [head, *lines[self._first_row :]]

    def _keys_lines(self, width: int) -> list[ScreenLine]:
        sorts = [f"{column.key} {column.title}" for column in COLUMNS]
        return [
            ScreenLine(fit_to_width(row, width))
            for row in ("Sort by:", *wrap_words(sorts, width), "", *wrap_words(KEYS_TEXT.split("  "), width))
        ]


def visible_columns(vms: Sequence[Vm]) -> list[Column]:
    """Return the columns to show: the first two, and each other column for which a VM has a value."""
    with_values = (column for column in COLUMNS[2:] if any(column.value(vm) is not None for vm in vms))
    return [*COLUMNS[:2], *with_values]


def table(vms: Sequence[Vm], width: int, sort: str = "") -> list[ScreenLine]:
    """Return the lines of the VM table: a heading, and a line for each VM.

    Args:
        vms: the VMs, in order.
        width: the maximum width in characters; the last columns are left out if they do not fit. 0 for no maximum.
        sort: the title of the column that the heading marks with an asterisk; empty for none.
    """
    shown = visible_columns(vms)
    longest = max((len(str(vm["name"])) for vm in vms), default=0)
    while width and len(shown) > 2 and sum(c.width + 1 for c in shown[1:]) + MIN_NAME_WIDTH > width:
        shown.pop()
    fixed = sum(column.width + 1 for column in shown[1:])
    name = max(MIN_NAME_WIDTH, longest) if not width else max(1, min(max(MIN_NAME_WIDTH, longest), width - fixed))

    def line(texts: Sequence[str]) -> str:
        cells = [fit_to_width(texts[0], name)]
        cells += [
            fit_to_width(text, c.width, right=c.descending or c.title in ("FREE", "FULL"))
            for text, c in zip(texts[1:], shown[1:], strict=True)
        ]
        row = " ".join(cells)
        return fit_to_width(row, width) if width else row.rstrip()

    lines = [ScreenLine(line([f"{c.title}*" if c.title == sort else c.title for c in shown]), TextStyle.HEAD)]
    return lines + [ScreenLine(line([c.text(c.value(vm)) for c in shown]), _style_of(vm)) for vm in vms]


def _style_of(vm: Vm) -> TextStyle:
    if vm["state"] != "up" or state(vm) in ("io-error", "internal-error", "guest-panicked"):
        return TextStyle.BAD
    return TextStyle.WARNING if vm["alerts"] else TextStyle.PLAIN
