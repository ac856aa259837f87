"""State of the `top` screen: handles pressed keys, and renders the last overview as the lines to draw. Pure."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from agent.cli.top.alert_and_monitor_lists import alert_lines, monitor_lines
from agent.cli.top.columns import COLUMNS, Column, OverviewVm, is_stopped_by_qemu, sort_by_column
from agent.cli.top.detail import detail_lines
from agent.cli.top.filter import parse_filter
from agent.cli.top.pools import pool_lines
from agent.cli.top.resources import resource_lines
from agent.cli.top.text import ScreenLine, TextStyle, fit_to_width, wrap_words

MIN_NAME_WIDTH = 12
KEYS_TEXT = "q quit  Enter detail  / filter  < > sort  R reverse  S storage  A alerts  M monitors  H host  ? keys"
FILTER_TEXT = "state:paused alert:any alert:critical label:NAME=VALUE is:degraded is:busy"


class TopView(StrEnum):
    """The list that the screen shows, as named in the option --view."""

    VMS = "vms"
    STORAGE = "storage"
    ALERTS = "alerts"
    MONITORS = "monitors"
    HOST = "host"


_VIEW_KEYS = {"S": TopView.STORAGE, "A": TopView.ALERTS, "M": TopView.MONITORS, "H": TopView.HOST}


@dataclass
class TopScreenState:
    """State of the `top` screen.

    Attributes:
        overview: the last response of /overview; empty before the first response.
        error: why the last request to the agent failed; empty if it succeeded.
        selected_vm: the UUID of the VM in the selected row of the table.
        opened_vm: the UUID of the VM whose details are shown; empty while a list is shown.
        view: the shown list.
        filter: the filter of the VM table, as typed.
        sort: the name of the column that sorts the table.
        reverse: whether the sort order is reversed.
        ended: whether the user has pressed `q`.
    """

    overview: Mapping[str, Any] = field(default_factory=dict)
    error: str = ""
    selected_vm: str = ""
    opened_vm: str = ""
    view: TopView = TopView.VMS
    filter: str = ""
    sort: str = "cpu"
    reverse: bool = False
    ended: bool = False
    _editing_filter: bool = False
    _showing_keys: bool = False
    _first_row: int = 0
    _page_rows: int = 10

    def filtered_vms(self) -> list[OverviewVm]:
        """Return the VMs that match the filter, in the order of the table."""
        alerts: dict[str, list[Mapping[str, Any]]] = {}
        for alert in self.overview.get("alerts", ()):
            alerts.setdefault(alert["uuid"], []).append(alert)
        matches = parse_filter(self.filter)
        vms = self.overview.get("vms", {}).items()
        visible = [vm | {"alerts": len(alerts.get(uuid, ()))} for uuid, vm in vms if matches(vm, alerts.get(uuid, ()))]
        shown = columns_with_values(visible)
        sorted_column = next((column for column in shown if column.name == self.sort), shown[0])
        return sort_by_column(visible, sorted_column, reverse=self.reverse)

    def on_key(self, name: str) -> None:
        """Update the state after a key press.

        Args:
            name: a character, UP, DOWN, LEFT, RIGHT, PAGE_UP, PAGE_DOWN, HOME, END, ENTER, ESCAPE or BACKSPACE.
        """
        if self._editing_filter:
            self._edit_filter(name)
        elif name in ("UP", "DOWN", "PAGE_UP", "PAGE_DOWN", "HOME", "END", "k", "j"):
            self._move_selection(name)
        elif name == "q":
            self.ended = True
        elif name in _VIEW_KEYS and not self.opened_vm:
            self.view, self._first_row = TopView.VMS if self.view is _VIEW_KEYS[name] else _VIEW_KEYS[name], 0
        elif name == "?":
            self._showing_keys = not self._showing_keys
        elif self.opened_vm or self._showing_keys or self.view is not TopView.VMS:
            if name in ("ESCAPE", "BACKSPACE", "ENTER", "LEFT"):
                self.opened_vm, self._first_row, self._showing_keys, self.view = "", 0, False, TopView.VMS
        else:
            self._on_table_key(name)

    def _edit_filter(self, name: str) -> None:
        if name in ("ENTER", "ESCAPE"):
            self._editing_filter = False
            self.filter = "" if name == "ESCAPE" else self.filter
        elif name == "BACKSPACE":
            self.filter = self.filter[:-1]
        elif len(name) == 1 and name.isprintable() and len(self.filter) < 100:
            self.filter += name

    def _move_selection(self, name: str) -> None:
        steps = {"UP": -1, "k": -1, "DOWN": 1, "j": 1, "PAGE_UP": -self._page_rows, "PAGE_DOWN": self._page_rows}
        step = steps.get(name, 1_000_000 if name == "END" else -1_000_000)
        if self.opened_vm or self.view is not TopView.VMS:
            self._first_row = max(0, self._first_row + step)
            return
        order = [vm["uuid"] for vm in self.filtered_vms()]
        if order:
            at = order.index(self.selected_vm) if self.selected_vm in order else 0
            self.selected_vm = order[min(max(0, at + step), len(order) - 1)]

    def _on_table_key(self, name: str) -> None:
        shown = columns_with_values(self.filtered_vms())
        names = [column.name for column in shown]
        at = names.index(self.sort) if self.sort in names else 0
        match name:
            case "/":
                self._editing_filter = True
            case "R":
                self.reverse = not self.reverse
            case "<" | ">":
                self.sort = names[(at + (1 if name == ">" else -1)) % len(names)]
            case "ENTER" | "RIGHT":
                self.opened_vm, self._first_row = self.selected_vm, 0
            case "ESCAPE":
                self.filter = ""
            case _:
                self.sort = next((column.name for column in shown if column.key == name), self.sort)

    def render(self, width: int, height: int) -> list[ScreenLine]:
        """Return the lines of the screen. If the selected VM is gone, select the first VM.

        Args:
            width: the width of the screen in characters.
            height: the number of lines.
        """
        head = [ScreenLine(fit_to_width(self._summary_text(), width)), self._problems_line(width)]
        foot = (
            f"Filter: {self.filter}_"
            if self._editing_filter
            else f"{KEYS_TEXT}{f'  (filter: {self.filter})' if self.filter else ''}"
        )
        max_lines = max(0, height - len(head) - 1)
        self._page_rows = max(1, max_lines - 2)
        body = (
            self._keys_lines(width)
            if self._showing_keys
            else self._detail_lines(width, max_lines)
            if self.opened_vm
            else self._table_lines(width, max_lines)
            if self.view is TopView.VMS
            else self._list_lines(width, max_lines)
        )
        body = body[:max_lines] + [ScreenLine("")] * (max_lines - len(body))
        return [*head, *body, ScreenLine(fit_to_width(foot, width), TextStyle.SOFT)][:height]

    def _summary_text(self) -> str:
        agent = self.overview.get("agent")
        if agent is None:
            return "qmp-agent top"
        monitors = [monitor["state"] for monitor in self.overview["monitors"]]
        states = ", ".join(f"{monitors.count(name)} {name}" for name in dict.fromkeys(sorted(monitors)))
        counts = (
            f"{len(self.overview['vms'])} VMs   monitors: {states or 'none'}   alerts: {len(self.overview['alerts'])}"
        )
        return f"{agent['host']}   {counts}"

    def _problems_line(self, width: int) -> ScreenLine:
        """Return a line with the most important problems: the last request's error, why the agent is not ready, or warnings."""
        agent = self.overview.get("agent", {})
        reasons = [self.error] if self.error else agent.get("unready_reasons", [])
        if reasons:
            return ScreenLine(fit_to_width("; ".join(reasons), width), TextStyle.BAD)
        warnings = agent.get("warnings", [])
        return ScreenLine(fit_to_width("; ".join(warnings), width), TextStyle.WARNING) if warnings else ScreenLine("")

    def _table_lines(self, width: int, max_lines: int) -> list[ScreenLine]:
        shown = self.filtered_vms()
        order = [vm["uuid"] for vm in shown]
        if self.selected_vm not in order:
            self.selected_vm = order[0] if order else ""
        at = order.index(self.selected_vm) if order else 0
        rows = max(1, max_lines - 1)
        self._first_row = min(max(self._first_row, at - rows + 1, 0), at)
        head, *lines = table_lines(shown, width, self.sort)
        visible = list(zip(lines, shown, strict=True))[self._first_row : self._first_row + rows]
        return [head, *(self._highlight_selected(line, vm) for line, vm in visible)]

    def _highlight_selected(self, line: ScreenLine, vm: OverviewVm) -> ScreenLine:
        return ScreenLine(line.text, TextStyle.SELECTED) if vm["uuid"] == self.selected_vm else line

    def _detail_lines(self, width: int, max_lines: int) -> list[ScreenLine]:
        details = self.overview.get("detail") or {}
        vm = self.overview.get("vms", {}).get(self.opened_vm)
        if vm is None:
            return [ScreenLine("This VM is gone. Press Esc to go back.")]
        alerts = [alert for alert in self.overview["alerts"] if alert["uuid"] == self.opened_vm]
        lines = list(
            detail_lines(
                vm, alerts, details.get("families", ()) if details.get("uuid") == self.opened_vm else (), width
            )
        )
        self._first_row = min(self._first_row, max(0, len(lines) - max_lines))
        return lines[self._first_row :]

    def _list_lines(self, width: int, max_lines: int) -> list[ScreenLine]:
        head, *lines = current_view_lines(self, width)
        self._first_row = min(self._first_row, max(0, len(lines) - max_lines + 1))
        return [head, *lines[self._first_row :]]

    def _keys_lines(self, width: int) -> list[ScreenLine]:
        sorts = [f"{column.key} {column.title}" for column in COLUMNS]
        return [
            ScreenLine(fit_to_width(row, width))
            for row in (
                "Sort by:",
                *wrap_words(sorts, width),
                "",
                *wrap_words(KEYS_TEXT.split("  "), width),
                "",
                "Filter by words, and by:",
                *wrap_words(FILTER_TEXT.split(), width),
            )
        ]


def current_view_lines(screen: TopScreenState, width: int) -> list[ScreenLine]:
    """Return all lines of the list that the screen shows, beginning with the heading.

    Args:
        screen: the state of the screen.
        width: the maximum width in characters; 0 for no maximum.
    """
    match screen.view:
        case TopView.STORAGE:
            return list(pool_lines(screen.overview.get("pools", ()), width))
        case TopView.ALERTS:
            return list(alert_lines(screen.overview.get("alerts", ()), width))
        case TopView.MONITORS:
            return list(monitor_lines(screen.overview.get("monitors", ()), width))
        case TopView.HOST:
            return list(resource_lines(screen.overview.get("resources", {}), width))
        case TopView.VMS:
            return table_lines(screen.filtered_vms(), width)


def columns_with_values(vms: Sequence[OverviewVm]) -> list[Column]:
    """Return the columns to show: name, state, and each other column with a value for at least one VM."""
    with_values = (column for column in COLUMNS[2:] if any(column.value_of(vm) is not None for vm in vms))
    return [*COLUMNS[:2], *with_values]


def table_lines(vms: Sequence[OverviewVm], width: int, sort: str = "") -> list[ScreenLine]:
    """Return the lines of the VM table: a heading, and a line for each VM.

    Args:
        vms: the VMs, in order.
        width: the maximum width in characters; 0 for no maximum. Columns that do not fit are left out, the last columns first.
        sort: the name of the column that the heading marks with an asterisk; empty for none.
    """
    shown = columns_with_values(vms)
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

    lines = [ScreenLine(line([f"{c.title}*" if c.name == sort else c.title for c in shown]), TextStyle.HEAD)]
    return lines + [ScreenLine(line([c.format_value(c.value_of(vm)) for c in shown]), _vm_style(vm)) for vm in vms]


def _vm_style(vm: OverviewVm) -> TextStyle:
    if vm["state"] != "up" or is_stopped_by_qemu(vm):
        return TextStyle.BAD
    return TextStyle.WARNING if vm["alerts"] else TextStyle.PLAIN
