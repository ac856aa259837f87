"""Building blocks of the dashboards. They use Grafana's own SDK.

A dashboard has rows of panels. A panel has a title, a unit in Grafana's words, and PromQL queries with their legends.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import count
from string import ascii_uppercase
from typing import Any

from grafana_foundation_sdk.builders import (
    common,
    dashboard,
    heatmap,
    prometheus,
    stat,
    statetimeline,
    table,
    timeseries,
)
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
from grafana_foundation_sdk.models.heatmap import HeatmapColorMode
from grafana_foundation_sdk.models.prometheus import PromQueryFormat

from dashboards.series_help import describe_series

DATA_SOURCE = DataSourceRef(type_val="prometheus", uid="${datasource}")
TAGS = ["qemu", "qmp-agent"]

TO_HOST = "/d/qemu-host?var-host=${__field.labels.instance}&${datasource:queryparam}&${__url_time_range}"
TO_VM = "/d/qemu-vm?var-uuid=${__field.labels.vm_uuid}&${datasource:queryparam}&${__url_time_range}"


# --- Queries ---


def rate(series: str, where: str, by: str = "") -> str:
    """Return a query for a counter's rate, summed by labels unless `by` is empty."""
    text = f"rate({series}{{{where}}}[$__rate_interval])"
    return f"sum by ({by}) ({text})" if by else text


def mean_time(seconds: str, count: str, where: str) -> str:
    """Return a query for the mean duration of an operation in seconds; no value if there was no operation."""
    return f"{rate(seconds, where)} / ({rate(count, where)} > 0)"


# --- Panels ---

Query = tuple[str, str]
"""A PromQL expression and its legend."""


@dataclass(frozen=True, slots=True)
class Panel:
    """A panel.

    Attributes:
        title: the panel's title.
        queries: the PromQL expressions.
        build: creates the SDK's builder of the panel, without an id and a width.
        height: the height in Grafana's units; 4 for panels with one number.
    """

    title: str
    queries: Sequence[str]
    build: Callable[[], Any]
    height: int = 8


@dataclass(frozen=True, slots=True)
class PanelStyle:
    """The appearance of a panel.

    Attributes:
        thresholds: lower bound and colour of each range of values. Values below the first bound are green.
        empty: the text of a panel that has no values.
        help: the description, which Grafana shows at the panel's corner. The HELP texts of the series follow it.
        link: the URL that each series links to.
    """

    thresholds: Sequence[tuple[float, str]] = ()
    empty: str = ""
    help: str = ""
    link: str = ""


def graph_panel(title: str, unit: str, *queries: Query, **style: Any) -> Panel:
    """Return a panel with graphs over time. `style` has fields of PanelStyle."""

    def build() -> Any:
        panel = timeseries.Panel().fill_opacity(10).span_nulls(60_000.0)  # milliseconds: bridges a missed scrape
        panel = panel.tooltip(common.VizTooltipOptions().mode(TooltipDisplayMode.MULTI).sort(SortOrder.DESCENDING))
        if appearance.thresholds:
            panel = panel.thresholds_style(common.GraphThresholdsStyleConfig().mode(GraphThresholdsStyleMode.DASHED))
        return _with_queries(panel, title, unit, queries, appearance)

    appearance = PanelStyle(**style)
    return Panel(title, [query for query, _ in queries], build)


def heatmap_panel(title: str, unit: str, buckets: str, **style: Any) -> Panel:
    """Return a heat map of a histogram.

    Args:
        title: the panel's title.
        unit: the unit of the boundaries between the bins.
        buckets: a query for the rate of each bucket, by the label `le`.
        style: fields of PanelStyle.
    """

    def build() -> Any:
        panel = heatmap.Panel().title(title).unit(unit).datasource(DATA_SOURCE).thresholds(_thresholds(()))
        colours = heatmap.HeatmapColorOptions().mode(HeatmapColorMode.SCHEME).scheme("Oranges").steps(64)
        panel = panel.color(colours).y_axis(heatmap.YAxisConfig().unit(unit))
        panel = _with_texts(panel.cell_values(heatmap.CellValues().unit("iops")), appearance, [buckets])
        panel = panel.filter_values(heatmap.FilterValueRange().le(1e-9))  # no colour for bins without operations
        target = prometheus.Dataquery().expr(buckets).legend_format("{{le}}").format(PromQueryFormat.HEATMAP)
        return panel.with_target(target.ref_id("A").datasource(DATA_SOURCE))

    appearance = PanelStyle(**style)
    return Panel(title, [buckets], build)


def number_panel(title: str, unit: str, query: str, **style: Any) -> Panel:
    """Return a panel with one large number."""

    def build() -> Any:
        panel = stat.Panel().color_scheme(dashboard.FieldColor().mode(FieldColorModeId.THRESHOLDS))
        return _with_queries(panel, title, unit, ((query, title),), appearance)

    appearance = PanelStyle(**style)
    return Panel(title, [query], build, height=4)


def state_timeline_panel(title: str, meanings: Mapping[int, tuple[str, str]], *queries: Query, **style: Any) -> Panel:
    """Return a state timeline with a text and a colour for each value."""

    def build() -> Any:
        results = {str(value): ValueMappingResult(text, colour) for value, (text, colour) in meanings.items()}
        mappings: list[ValueMapping] = [ValueMap(results)]
        return _with_queries(statetimeline.Panel().mappings(mappings), title, "short", queries, appearance)

    appearance = PanelStyle(**style)
    return Panel(title, [query for query, _ in queries], build)


@dataclass(frozen=True, slots=True)
class Column:
    """A column of a table: title, unit, query, and the thresholds of colours."""

    title: str
    unit: str
    query: str
    thresholds: Sequence[tuple[float, str]] = ()


def table_panel(title: str, by: Mapping[str, str], *columns: Column, **style: Any) -> Panel:
    """Return a panel with a table of the present values.

    Args:
        title: the panel's title.
        by: the labels that identify a row, each with the title of its column; an empty title hides the column. Each query has the labels.
        columns: the columns with values.
        style: fields of PanelStyle. The link is on the first label.
    """

    def build() -> Any:
        panel = _with_texts(
            table.Panel().title(title).datasource(DATA_SOURCE), appearance, [column.query for column in columns]
        )
        names = {label: text for label, text in by.items() if text}
        for ref, column in zip(ascii_uppercase, columns, strict=False):
            query = prometheus.Dataquery().expr(column.query).instant().format(PromQueryFormat.TABLE).ref_id(ref)
            panel = panel.with_target(query.datasource(DATA_SOURCE))
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

    appearance = PanelStyle(**style)
    return Panel(title, [column.query for column in columns], build)


def _colour_properties(column: Column) -> list[DynamicConfigValue]:
    if not column.thresholds:
        return []
    return [
        DynamicConfigValue("thresholds", _thresholds(column.thresholds).build()),
        DynamicConfigValue("custom.cellOptions", {"type": "color-text"}),
    ]


def _with_queries(panel: Any, title: str, unit: str, queries: Sequence[Query], appearance: PanelStyle) -> Any:
    """Set the title, unit, queries and appearance of a panel."""
    panel = panel.title(title).unit(unit).datasource(DATA_SOURCE).thresholds(_thresholds(appearance.thresholds))
    panel = _with_texts(panel, appearance, [query for query, _ in queries])
    if appearance.link:
        panel = panel.data_links([dashboard.DashboardLink("Show").url(appearance.link)])
    for ref, (query, legend) in zip(ascii_uppercase, queries, strict=False):
        target = prometheus.Dataquery().expr(query).legend_format(legend).ref_id(ref)
        panel = panel.with_target(target.datasource(DATA_SOURCE))
    return panel


def _with_texts(panel: Any, appearance: PanelStyle, queries: Sequence[str]) -> Any:
    """Set the panel's description and its text for no value. An empty text is not set, because it would replace Grafana's default."""
    panel = panel.description("\n\n".join(filter(None, (appearance.help, describe_series(queries)))))
    return panel.no_value(appearance.empty) if appearance.empty else panel


def _thresholds(steps: Sequence[tuple[float, str]]) -> dashboard.ThresholdsConfig:
    ranges = [Threshold(None, "green"), *(Threshold(value, colour) for value, colour in steps)]
    return dashboard.ThresholdsConfig().mode(ThresholdsMode.ABSOLUTE).steps(ranges)


# --- Variables ---


def query_variable(
    name: str, label: str, query: str, *, many: bool = False, regex: str = ""
) -> dashboard.QueryVariable:
    """Return a dashboard variable whose values come from a query. The default is the first value; with `many`, all values."""
    variable = dashboard.QueryVariable(name).label(label).datasource(DATA_SOURCE).query(query)
    variable = variable.refresh(VariableRefresh.ON_TIME_RANGE_CHANGED).sort(VariableSort.ALPHABETICAL_ASC)
    if many:
        variable = variable.multi(multi=True).include_all(include_all=True).all_value(".*")
    return variable.regex(regex) if regex else variable


HOSTS = query_variable("hosts", "Hosts", "label_values(qmp_agent_build_info, instance)", many=True)
HOSTS_MATCHER = 'instance=~"$hosts"'
"""Label matcher of the selected hosts."""


# --- Dashboards ---


class _Annotation(AnnotationQuery):
    """An annotation with the keys of the Prometheus data source. The SDK lacks these keys."""

    def to_json(self) -> dict[str, object]:
        return super().to_json() | {
            "step": "60s",
            "titleFormat": "{{vm}}: {{event}}{{alert}}",
            "tagKeys": "device,level",
        }


class _AnnotationBuilder(Builder[AnnotationQuery]):
    def __init__(self, name: str, colour: str, query: str) -> None:
        self._annotation = _Annotation(name=name, datasource=DATA_SOURCE, icon_color=colour, expr=query)

    def build(self) -> AnnotationQuery:
        return self._annotation


EVENTS = "|".join(
    (
        *("STOP", "RESUME", "RESET", "SHUTDOWN", "SUSPEND", "WAKEUP", "GUEST_PANICKED", "GUEST_CRASHLOADED"),
        *("WATCHDOG", "BLOCK_IO_ERROR", "BLOCK_JOB_.*", "MIGRATION", "DEVICE_DELETED"),
    )
)
"""Regular expression of the events that graphs show as annotations: those that change a VM's state."""


@dataclass(frozen=True)
class Dashboard:
    """A dashboard.

    Attributes:
        uid: the identity in links, and the name of the JSON file.
        title: the dashboard's title.
        description: what the dashboard shows.
        variables: the drop-down lists above the panels.
        where: the label matchers of the selected values.
        rows: the panels of each row, by the row's title.
    """

    uid: str
    title: str
    description: str
    variables: Sequence[dashboard.QueryVariable]
    where: str
    rows: Mapping[str, Sequence[Panel]]

    @property
    def annotations(self) -> Mapping[str, tuple[str, str]]:
        """Colour and query of each annotation, by name. A counter of events has no value before its first event."""
        events = f'qemu_vm_events_total{{{self.where},event=~"{EVENTS}"}}'
        firing = f"qemu_alert_firing{{{self.where}}}"
        return {
            "Events": ("blue", f"({events} - ({events} offset 1m or {events} * 0)) > 0"),
            "Alerts": ("red", f"{firing} unless {firing} offset 1m"),
        }

    def queries(self) -> Iterator[tuple[str, str]]:
        """Yield every query: the title of its panel or annotation, and the PromQL expression."""
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
        board = board.with_variable(dashboard.DatasourceVariable("datasource").label("Data source").type("prometheus"))
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
                board = board.with_panel(_PlacedPanel(panel, 24 // len(panels), next(numbers)))
        return JSONEncoder(sort_keys=True, indent=2).encode(board.build())


class _PlacedPanel(Builder[PanelModel]):
    """Builds a panel with an id and a width."""

    def __init__(self, panel: Panel, width: int, panel_id: int) -> None:
        self._panel = panel.build().id(panel_id).span(width).height(panel.height)

    def build(self) -> PanelModel:
        model: PanelModel = self._panel.build()
        return model
