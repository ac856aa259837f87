"""Building blocks of the dashboards, on Grafana's own SDK, so that each dashboard is a short table of panels.

A dashboard has rows of panels; a panel has a title, a unit by Grafana's name, and queries with their legends.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import count
from string import ascii_uppercase
from typing import Any

from grafana_foundation_sdk.builders import common, dashboard, prometheus, stat, statetimeline, table, timeseries
from grafana_foundation_sdk.cog.builder import Builder
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.models.common import GraphThresholdsStyleMode, SortOrder, TooltipDisplayMode
from grafana_foundation_sdk.models.dashboard import (
    AnnotationQuery,
    DashboardCursorSync,
    DashboardLinkType,
    DataSourceRef,
    DataTransformerConfig,
    DynamicConfigValue,
    FieldColorModeId,
    Threshold,
    ThresholdsMode,
    ValueMap,
    ValueMapping,
    ValueMappingResult,
    VariableRefresh,
    VariableSort,
)
from grafana_foundation_sdk.models.dashboard import Panel as PanelModel
from grafana_foundation_sdk.models.prometheus import PromQueryFormat

SOURCE = DataSourceRef(type_val="prometheus", uid="${source}")
TAGS = ["qemu", "qmp-agent"]

TO_HOST = "/d/qemu-host?var-host=${__field.labels.instance}&${source:queryparam}&${__url_time_range}"
TO_VM = "/d/qemu-vm?var-uuid=${__field.labels.vm_uuid}&${source:queryparam}&${__url_time_range}"


# --- Queries ---


def rate(series: str, where: str, by: str = "") -> str:
    """Return a counter's rate, summed by labels if they are given."""
    text = f"rate({series}{{{where}}}[$__rate_interval])"
    return f"sum by ({by}) ({text})" if by else text


def mean_time(seconds: str, count: str, where: str) -> str:
    """Return the mean duration of one operation; no value if there was none."""
    return f"{rate(seconds, where)} / ({rate(count, where)} > 0)"


# --- Panels ---

Query = tuple[str, str]
"""An expression and its legend."""


@dataclass(frozen=True, slots=True)
class Panel:
    """One panel.

    Attributes:
        title: its title.
        queries: the expressions.
        build: creates the panel without its id and width; all panels of a row have the same width.
        height: in Grafana's units; a row of numbers has 4.
    """

    title: str
    queries: Sequence[str]
    build: Callable[[], Any]
    height: int = 8


@dataclass(frozen=True, slots=True)
class Style:
    """Appearance of a panel.

    Attributes:
        thresholds: lower bound and colour of each range; values below the first are green.
        empty: text of a panel without values.
        help: description, shown at the panel's corner.
        link: URL that a series links to.
    """

    thresholds: Sequence[tuple[float, str]] = ()
    empty: str = ""
    help: str = ""
    link: str = ""


def graph(title: str, unit: str, *queries: Query, **style: Any) -> Panel:
    """Return a time series panel; `style` are Style's fields."""

    def build() -> Any:
        panel = timeseries.Panel().fill_opacity(10).span_nulls(60_000.0)  # milliseconds: bridges a missed scrape
        panel = panel.tooltip(common.VizTooltipOptions().mode(TooltipDisplayMode.MULTI).sort(SortOrder.DESCENDING))
        if appearance.thresholds:
            panel = panel.thresholds_style(common.GraphThresholdsStyleConfig().mode(GraphThresholdsStyleMode.DASHED))
        return _with_queries(panel, title, unit, queries, appearance)

    appearance = Style(**style)
    return Panel(title, [query for query, _ in queries], build)


def number(title: str, unit: str, query: str, **style: Any) -> Panel:
    """Return a panel with one large number."""

    def build() -> Any:
        panel = stat.Panel().color_scheme(dashboard.FieldColor().mode(FieldColorModeId.THRESHOLDS))
        return _with_queries(panel, title, unit, ((query, title),), appearance)

    appearance = Style(**style)
    return Panel(title, [query], build, height=4)


def states(title: str, meanings: Mapping[int, tuple[str, str]], *queries: Query, **style: Any) -> Panel:
    """Return a state timeline with a text and a colour for each value."""

    def build() -> Any:
        results = {str(value): ValueMappingResult(text, colour) for value, (text, colour) in meanings.items()}
        mappings: list[ValueMapping] = [ValueMap(results)]
        return _with_queries(statetimeline.Panel().mappings(mappings), title, "short", queries, appearance)

    appearance = Style(**style)
    return Panel(title, [query for query, _ in queries], build)


@dataclass(frozen=True, slots=True)
class Column:
    """A column of a table: its title, unit, query and colour ranges."""

    title: str
    unit: str
    query: str
    thresholds: Sequence[tuple[float, str]] = ()


def rows(title: str, by: Mapping[str, str], *columns: Column, **style: Any) -> Panel:
    """Return a table of present values.

    Args:
        title: its title.
        by: the labels that identify a row, which each query must have, with their columns' titles; an empty title hides the column.
        columns: the columns with values.
        style: Style's fields; the first label gets the link.
    """

    def build() -> Any:
        panel = _with_texts(table.Panel().title(title).datasource(SOURCE), appearance)
        names = {label: text for label, text in by.items() if text}
        for ref, column in zip(ascii_uppercase, columns, strict=False):
            query = prometheus.Dataquery().expr(column.query).instant().format(PromQueryFormat.TABLE).ref_id(ref)
            panel = panel.with_target(query.datasource(SOURCE))
            names[f"Value #{ref}" if len(columns) > 1 else "Value"] = column.title
            panel = panel.override_by_name(
                column.title, [DynamicConfigValue("unit", column.unit), *_colour_properties(column)]
            )
        if appearance.link:
            link = [{"title": "Show", "url": appearance.link.replace("__field.labels", "__data.fields")}]
            panel = panel.override_by_name(next(iter(names.values())), [DynamicConfigValue("links", link)])
        hidden = [DynamicConfigValue("custom.hidden", value=True)]
        for label in by.keys() - names.keys():  # hidden, but needed by the link
            panel = panel.override_by_name(label, hidden)
        order = {name: place for place, name in enumerate(names)}
        organize = {"renameByName": names, "indexByName": order, "includeByName": {}, "excludeByName": {"Time": True}}
        for step, options in {"merge": {}, "organize": organize}.items():
            panel = panel.with_transformation(DataTransformerConfig(step, options=options))
        return panel

    appearance = Style(**style)
    return Panel(title, [column.query for column in columns], build)


def _colour_properties(column: Column) -> list[DynamicConfigValue]:
    if not column.thresholds:
        return []
    return [
        DynamicConfigValue("thresholds", _thresholds(column.thresholds).build()),
        DynamicConfigValue("custom.cellOptions", {"type": "color-text"}),
    ]


def _with_queries(panel: Any, title: str, unit: str, queries: Sequence[Query], appearance: Style) -> Any:
    """Set what all kinds of panels with series have in common."""
    panel = _with_texts(panel.title(title).unit(unit).datasource(SOURCE), appearance).thresholds(
        _thresholds(appearance.thresholds)
    )
    if appearance.link:
        panel = panel.data_links([dashboard.DashboardLink("Show").url(appearance.link)])
    for ref, (query, legend) in zip(ascii_uppercase, queries, strict=False):
        target = prometheus.Dataquery().expr(query).legend_format(legend).ref_id(ref)
        panel = panel.with_target(target.datasource(SOURCE))
    return panel


def _with_texts(panel: Any, appearance: Style) -> Any:
    """Set the panel's description and its text for no value, if any: an empty text would replace the default."""
    panel = panel.description(appearance.help) if appearance.help else panel
    return panel.no_value(appearance.empty) if appearance.empty else panel


def _thresholds(steps: Sequence[tuple[float, str]]) -> dashboard.ThresholdsConfig:
    ranges = [Threshold(None, "green"), *(Threshold(value, colour) for value, colour in steps)]
    return dashboard.ThresholdsConfig().mode(ThresholdsMode.ABSOLUTE).steps(ranges)


# --- Variables ---


def choice(name: str, label: str, query: str, *, many: bool = False, regex: str = "") -> dashboard.QueryVariable:
    """Return a variable with the values of a query; the default is the first one, or all with `many`."""
    variable = dashboard.QueryVariable(name).label(label).datasource(SOURCE).query(query)
    variable = variable.refresh(VariableRefresh.ON_TIME_RANGE_CHANGED).sort(VariableSort.ALPHABETICAL_ASC)
    if many:
        variable = variable.multi(multi=True).include_all(include_all=True).all_value(".*")
    return variable.regex(regex) if regex else variable


HOSTS = choice("hosts", "Hosts", "label_values(qmp_agent_build_info, instance)", many=True)
EVERY = 'instance=~"$hosts"'
"""Label matcher of the selected hosts."""


# --- Dashboards ---


class _Annotation(AnnotationQuery):
    """Annotations with the keys of the Prometheus data source, which the SDK lacks."""

    def to_json(self) -> dict[str, object]:
        return super().to_json() | {
            "step": "60s",
            "titleFormat": "{{vm}}: {{event}}{{alert}}",
            "tagKeys": "device,level",
        }


class _AnnotationBuilder(Builder[AnnotationQuery]):
    def __init__(self, name: str, colour: str, query: str) -> None:
        self._annotation = _Annotation(name=name, datasource=SOURCE, icon_color=colour, expr=query)

    def build(self) -> AnnotationQuery:
        return self._annotation


EVENTS = "|".join(
    (
        *("STOP", "RESUME", "RESET", "SHUTDOWN", "SUSPEND", "WAKEUP", "GUEST_PANICKED", "GUEST_CRASHLOADED"),
        *("WATCHDOG", "BLOCK_IO_ERROR", "BLOCK_JOB_.*", "MIGRATION", "DEVICE_DELETED"),
    )
)
"""Events that are annotated on graphs: those that change a VM's state."""


@dataclass(frozen=True)
class Dashboard:
    """One dashboard.

    Attributes:
        uid: identity in links, and name of its file.
        title: its title.
        description: its purpose.
        variables: the selections above the panels.
        where: label matchers of the selection.
        rows: panels by row titles.
    """

    uid: str
    title: str
    description: str
    variables: Sequence[dashboard.QueryVariable]
    where: str
    rows: Mapping[str, Sequence[Panel]]

    @property
    def annotations(self) -> Mapping[str, tuple[str, str]]:
        """Colour and query of each annotation, by name. A counter of events begins at its first event."""
        events = f'qemu_vm_events_total{{{self.where},event=~"{EVENTS}"}}'
        firing = f"qemu_alert_firing{{{self.where}}}"
        return {
            "Events": ("blue", f"({events} - ({events} offset 1m or {events} * 0)) > 0"),
            "Alerts": ("red", f"{firing} unless {firing} offset 1m"),
        }

    def queries(self) -> Iterator[tuple[str, str]]:
        """Yield the title and the expression of every query."""
        for panels in self.rows.values():
            for panel in panels:
                for query in panel.queries:
                    yield panel.title, query
        for name, (_, query) in self.annotations.items():
            yield name, query

    def json(self) -> str:
        """Return the dashboard as JSON for Grafana's import."""
        board = dashboard.Dashboard(self.title).uid(self.uid).description(self.description).tags(TAGS).readonly()
        board = board.refresh("30s").time("now-1h", "now").tooltip(DashboardCursorSync.CROSSHAIR)
        board = board.with_variable(dashboard.DatasourceVariable("source").label("Data source").type("prometheus"))
        for variable in self.variables:
            board = board.with_variable(variable)
        others = dashboard.DashboardLink("QEMU").type(DashboardLinkType.DASHBOARDS).tags(TAGS)
        board = board.link(
            others.as_dropdown(as_dropdown=True).include_vars(include_vars=True).keep_time(keep_time=True)
        )
        for name, (colour, query) in self.annotations.items():
            board = board.annotation(_AnnotationBuilder(name, colour, query))
        numbers = count(1)
        for title, panels in self.rows.items():
            board = board.with_row(dashboard.Row(title).id(next(numbers)))
            for panel in panels:
                board = board.with_panel(_Placed(panel, 24 // len(panels), next(numbers)))
        return JSONEncoder(sort_keys=True, indent=2).encode(board.build())


class _Placed(Builder[PanelModel]):
    """A panel with its id and width."""

    def __init__(self, panel: Panel, width: int, panel_id: int) -> None:
        self._panel = panel.build().id(panel_id).span(width).height(panel.height)

    def build(self) -> PanelModel:
        model: PanelModel = self._panel.build()
        return model
