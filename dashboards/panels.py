"""What every dashboard is made of, so that each is a short table of panels: with Grafana's own SDK.

A dashboard is rows of panels; a panel is a title, a unit in Grafana's names and queries, each with its legend.
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
    """Return how fast a counter grows, summed by some labels where they are given."""
    text = f"rate({series}{{{where}}}[$__rate_interval])"
    return f"sum by ({by}) ({text})" if by else text


def each(seconds: str, count: str, where: str) -> str:
    """Return how long one operation took; nothing where there was none."""
    return f"{rate(seconds, where)} / ({rate(count, where)} > 0)"


# --- Panels ---

Query = tuple[str, str]
"""An expression and its legend; in a table, the column's title and unit instead."""


@dataclass(frozen=True, slots=True)
class Panel:
    """One panel.

    Attributes:
        title: its title.
        queries: the expressions.
        make: makes it, without its number and its width: all panels of a row are as wide.
        height: in Grafana's units, of which a row of numbers has 4.
    """

    title: str
    queries: Sequence[str]
    make: Callable[[], Any]
    height: int = 8


@dataclass(frozen=True, slots=True)
class Style:
    """How values look.

    Attributes:
        thresholds: from which value on they have which colour; below the first they are green.
        empty: what stands there where there is nothing.
        help: what it is, for who points at its corner.
        link: where a series leads to.
    """

    thresholds: Sequence[tuple[float, str]] = ()
    empty: str = ""
    help: str = ""
    link: str = ""


def graph(title: str, unit: str, *queries: Query, **style: Any) -> Panel:
    """Return lines over time; `style` are Style's fields."""

    def make() -> Any:
        panel = timeseries.Panel().fill_opacity(10).span_nulls(60_000.0)  # milliseconds: a scrape that was missed
        panel = panel.tooltip(common.VizTooltipOptions().mode(TooltipDisplayMode.MULTI).sort(SortOrder.DESCENDING))
        if look.thresholds:
            panel = panel.thresholds_style(common.GraphThresholdsStyleConfig().mode(GraphThresholdsStyleMode.DASHED))
        return _filled(panel, title, unit, queries, look)

    look = Style(**style)
    return Panel(title, [query for query, _ in queries], make)


def number(title: str, unit: str, query: str, **style: Any) -> Panel:
    """Return one number, large."""

    def make() -> Any:
        panel = stat.Panel().color_scheme(dashboard.FieldColor().mode(FieldColorModeId.THRESHOLDS))
        return _filled(panel, title, unit, ((query, title),), look)

    look = Style(**style)
    return Panel(title, [query], make, height=4)


def states(title: str, meanings: Mapping[int, tuple[str, str]], *queries: Query, **style: Any) -> Panel:
    """Return bars over time that say in words and colours what each value means."""

    def make() -> Any:
        results = {str(value): ValueMappingResult(text, colour) for value, (text, colour) in meanings.items()}
        mappings: list[ValueMapping] = [ValueMap(results)]
        return _filled(statetimeline.Panel().mappings(mappings), title, "short", queries, look)

    look = Style(**style)
    return Panel(title, [query for query, _ in queries], make)


@dataclass(frozen=True, slots=True)
class Column:
    """A column of a table: what it says of each row, its unit, and from which values on it has which colour."""

    title: str
    unit: str
    query: str
    thresholds: Sequence[tuple[float, str]] = ()


def rows(title: str, by: Mapping[str, str], *columns: Column, **style: Any) -> Panel:
    """Return a table of what there is now.

    Args:
        title: its title.
        by: the labels that make a row, which each query must have, and their columns' titles; an empty one is hidden.
        columns: the others.
        style: Style's fields; the link is the first label's.
    """

    def make() -> Any:
        panel = _told(table.Panel().title(title).datasource(SOURCE), look)
        names = {label: text for label, text in by.items() if text}
        for ref, column in zip(ascii_uppercase, columns, strict=False):
            query = prometheus.Dataquery().expr(column.query).instant().format(PromQueryFormat.TABLE).ref_id(ref)
            panel = panel.with_target(query.datasource(SOURCE))
            names[f"Value #{ref}" if len(columns) > 1 else "Value"] = column.title
            panel = panel.override_by_name(column.title, [DynamicConfigValue("unit", column.unit), *_coloured(column)])
        if look.link:
            link = [{"title": "Show", "url": look.link.replace("__field.labels", "__data.fields")}]
            panel = panel.override_by_name(next(iter(names.values())), [DynamicConfigValue("links", link)])
        hidden = [DynamicConfigValue("custom.hidden", value=True)]
        for label in by.keys() - names.keys():  # kept, for the link
            panel = panel.override_by_name(label, hidden)
        order = {name: place for place, name in enumerate(names)}
        organize = {"renameByName": names, "indexByName": order, "includeByName": {}, "excludeByName": {"Time": True}}
        for step, options in {"merge": {}, "organize": organize}.items():
            panel = panel.with_transformation(DataTransformerConfig(step, options=options))
        return panel

    look = Style(**style)
    return Panel(title, [column.query for column in columns], make)


def _coloured(column: Column) -> list[DynamicConfigValue]:
    if not column.thresholds:
        return []
    return [
        DynamicConfigValue("thresholds", _thresholds(column.thresholds).build()),
        DynamicConfigValue("custom.cellOptions", {"type": "color-text"}),
    ]


def _filled(panel: Any, title: str, unit: str, queries: Sequence[Query], look: Style) -> Any:
    """Return a panel of any of the kinds that have series, with all that they have in common."""
    panel = _told(panel.title(title).unit(unit).datasource(SOURCE), look).thresholds(_thresholds(look.thresholds))
    if look.link:
        panel = panel.data_links([dashboard.DashboardLink("Show").url(look.link)])
    for ref, (query, legend) in zip(ascii_uppercase, queries, strict=False):
        target = prometheus.Dataquery().expr(query).legend_format(legend).ref_id(ref)
        panel = panel.with_target(target.datasource(SOURCE))
    return panel


def _told(panel: Any, look: Style) -> Any:
    """Return a panel with its texts, as far as it has any: an empty one would stand where there is no value."""
    panel = panel.description(look.help) if look.help else panel
    return panel.no_value(look.empty) if look.empty else panel


def _thresholds(steps: Sequence[tuple[float, str]]) -> dashboard.ThresholdsConfig:
    least = [Threshold(None, "green"), *(Threshold(value, colour) for value, colour in steps)]
    return dashboard.ThresholdsConfig().mode(ThresholdsMode.ABSOLUTE).steps(least)


# --- Variables ---


def choice(name: str, label: str, query: str, *, many: bool = False, regex: str = "") -> dashboard.QueryVariable:
    """Return a variable that is chosen out of what a query finds, by default the first, or of `many` all."""
    variable = dashboard.QueryVariable(name).label(label).datasource(SOURCE).query(query)
    variable = variable.refresh(VariableRefresh.ON_TIME_RANGE_CHANGED).sort(VariableSort.ALPHABETICAL_ASC)
    if many:
        variable = variable.multi(multi=True).include_all(include_all=True).all_value(".*")
    return variable.regex(regex) if regex else variable


HOSTS = choice("hosts", "Hosts", "label_values(qmp_agent_build_info, instance)", many=True)
EVERY = 'instance=~"$hosts"'
"""What is on the hosts that were chosen."""


# --- Dashboards ---


class _Marks(AnnotationQuery):
    """Marks of what happened, with Prometheus' own keys, which the SDK lacks."""

    def to_json(self) -> dict[str, object]:
        return super().to_json() | {
            "step": "60s",
            "titleFormat": "{{vm}}: {{event}}{{alert}}",
            "tagKeys": "device,level",
        }


class _MarksBuilder(Builder[AnnotationQuery]):
    def __init__(self, name: str, colour: str, query: str) -> None:
        self._marks = _Marks(name=name, datasource=SOURCE, icon_color=colour, expr=query)

    def build(self) -> AnnotationQuery:
        return self._marks


EVENTS = "|".join(
    (
        *("STOP", "RESUME", "RESET", "SHUTDOWN", "SUSPEND", "WAKEUP", "GUEST_PANICKED", "GUEST_CRASHLOADED"),
        *("WATCHDOG", "BLOCK_IO_ERROR", "BLOCK_JOB_.*", "MIGRATION", "DEVICE_DELETED"),
    )
)
"""What is marked on graphs: what changes a VM's life."""


@dataclass(frozen=True)
class Dashboard:
    """One dashboard.

    Attributes:
        uid: what links name it by, and its file.
        title: its title.
        about: what it is for.
        variables: what is chosen above it.
        where: the labels that the chosen has.
        rows: panels, by the titles of the rows.
    """

    uid: str
    title: str
    about: str
    variables: Sequence[dashboard.QueryVariable]
    where: str
    rows: Mapping[str, Sequence[Panel]]

    @property
    def marks(self) -> Mapping[str, tuple[str, str]]:
        """What is marked on every graph: colour and query, by name. A counter of events begins at its first event."""
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
        for name, (_, query) in self.marks.items():
            yield name, query

    def json(self) -> str:
        """Return it as Grafana imports it."""
        made = dashboard.Dashboard(self.title).uid(self.uid).description(self.about).tags(TAGS).readonly()
        made = made.refresh("30s").time("now-1h", "now").tooltip(DashboardCursorSync.CROSSHAIR)
        made = made.with_variable(dashboard.DatasourceVariable("source").label("Data source").type("prometheus"))
        for variable in self.variables:
            made = made.with_variable(variable)
        others = dashboard.DashboardLink("QEMU").type(DashboardLinkType.DASHBOARDS).tags(TAGS)
        made = made.link(others.as_dropdown(as_dropdown=True).include_vars(include_vars=True).keep_time(keep_time=True))
        for name, (colour, query) in self.marks.items():
            made = made.annotation(_MarksBuilder(name, colour, query))
        numbers = count(1)
        for title, panels in self.rows.items():
            made = made.with_row(dashboard.Row(title).id(next(numbers)))
            for panel in panels:
                made = made.with_panel(_Placed(panel, 24 // len(panels), next(numbers)))
        return JSONEncoder(sort_keys=True, indent=2).encode(made.build())


class _Placed(Builder[PanelModel]):
    """A panel with its number and its place's size."""

    def __init__(self, panel: Panel, width: int, number_: int) -> None:
        self._made = panel.make().id(number_).span(width).height(panel.height)

    def build(self) -> PanelModel:
        model: PanelModel = self._made.build()
        return model
