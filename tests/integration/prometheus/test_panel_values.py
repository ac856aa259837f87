"""The exact values of the panels of alerts, guests and KubeVirt: with no VM, one, many, one gone, and one on two hosts.

Prometheus' promtool evaluates each query of each panel. Counters grow once a minute, and rates cover five minutes.
"""

import json
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Protocol

import pytest

from dashboards.alerts import ALERTS
from dashboards.guests import GUESTS
from dashboards.kubevirt import KUBEVIRT
from tests.integration.prometheus.test_rules import promtool
from tests.integration.prometheus.test_two_hosts import substitute

Sighting = tuple[str, str]
"""A host, and a VM that it has."""

STATES: Final[Mapping[str, tuple[Sequence[Sighting], Sequence[Sighting]]]] = {
    "no VM": ([], []),
    "one VM": ([("hv1", "web-1")], []),
    "many VMs": ([("hv1", "web-1"), ("hv1", "db-1"), ("hv2", "ci-1")], []),
    "one VM gone": ([("hv1", "web-1")], [("hv1", "db-1"), ("hv2", "ci-1")]),
    "one VM on two hosts": ([("hv1", "web-1"), ("hv2", "web-1")], []),
}
"""States of a fleet: the VMs that its hosts have, and those that they no longer have."""

NUMBERS: Final = {"web-1": 1, "db-1": 2, "ci-1": 4}
"""The number of each VM. Most values of a VM are multiples of it, which are exact for powers of two."""


def vm_labels(host: str, vm: str, **more: str) -> dict[str, str]:
    """Return the labels of a VM on a host."""
    return {"instance": f"{host}:9179", "vm": vm, "vm_uuid": f"u{NUMBERS[vm]}"} | more


def format_labels(labels: Mapping[str, str]) -> str:
    return "{" + ",".join(f'{name}="{value}"' for name, value in labels.items() if value) + "}"


# --- Input ---


@dataclass(frozen=True, slots=True)
class Series:
    """A series of each VM.

    Attributes:
        name: the metric.
        labels: the labels besides those of the host and the VM; `{host}` in a value is the host.
        start: the value at the start.
        slope: how much it grows a minute.
        vms: the VMs that have it.
    """

    name: str
    labels: Mapping[str, str]
    start: Callable[[int], float]
    slope: Callable[[int], float]
    vms: Sequence[str]

    def as_input(self, host: str, vm: str, end: str) -> dict[str, str]:
        """Return the series of a VM on a host in promtool's notation; `end` is how many values follow the first."""
        labels = {name: value.format(host=host) for name, value in self.labels.items()}
        values = f"{self.start(NUMBERS[vm])}+{self.slope(NUMBERS[vm])}{end}"
        return {"series": self.name + format_labels(vm_labels(host, vm) | labels), "values": values}


def constant(series: str, value: Callable[[int], float], /, *vms: str, **labels: str) -> Series:
    """Return a series with a constant value, a function of the VM's number."""
    return Series(series, labels, value, lambda _: 0, vms or tuple(NUMBERS))


def counter(name: str, a_minute: int, **labels: str) -> Series:
    """Return a series that grows by a multiple of the VM's number each minute."""
    return Series(name, labels, lambda _: 0, lambda number: a_minute * number, tuple(NUMBERS))


# --- Results ---


class Result(Protocol):
    """The result of a query."""

    def samples(self, present: Sequence[Sighting], /) -> dict[str, float]:
        """Return the values by labels."""


@dataclass(frozen=True, slots=True)
class Distinct:
    """The result of a query for the number of distinct things: VMs if `of_vms`, else hosts."""

    of_vms: bool

    def samples(self, present: Sequence[Sighting]) -> dict[str, float]:
        return {"{}": float(len({vm if self.of_vms else host for host, vm in present}))}


@dataclass(frozen=True, slots=True)
class Expected:
    """The result of a query.

    Attributes:
        row: the labels and the value that each VM of a host adds; None for a VM that adds nothing.
        merge: how values with the same labels make one.
        is_number: whether the query returns 0 if no VM adds anything.
        name: the name of the series in the result, which a query without an operator keeps.
    """

    row: Callable[[str, str], tuple[dict[str, str], float] | None]
    merge: Callable[[Iterable[float]], float] = sum
    is_number: bool = False
    name: str = ""

    def samples(self, present: Sequence[Sighting]) -> dict[str, float]:
        """Return the values by labels."""
        groups: defaultdict[str, list[float]] = defaultdict(list)
        for host, vm in present:
            found = self.row(host, vm)
            if found is not None:
                groups[self.name + format_labels(found[0])].append(found[1])
        result = {labels: self.merge(values) for labels, values in groups.items()}
        return result or ({"{}": 0.0} if self.is_number else {})


def number(value: Callable[[str], float]) -> Expected:
    """Return the result of a query for one number: the sum of a value of each VM of each host."""
    return Expected(lambda _, vm: ({}, value(vm)), is_number=True)


def per_vm_and_host(value: Callable[[int], float], *, name: str = "", **more: str) -> Expected:
    """Return the result of a query with a row for each VM of each host."""
    return Expected(lambda host, vm: (vm_labels(host, vm, **more), value(NUMBERS[vm])), name=name)


def per_vm(value: Callable[[int], float], merge: Callable[[Iterable[float]], float]) -> Expected:
    """Return the result of a query with a row for each VM, wherever it is."""
    return Expected(lambda _, vm: ({"vm": vm, "vm_uuid": f"u{NUMBERS[vm]}"}, value(NUMBERS[vm])), merge)


# --- Alerts ---

ALERT_OF: Final = {
    "web-1": {"alert": "guest_paused_io_error", "level": "", "severity": "critical", "device": "disk0"},
    "db-1": {"alert": "write_threshold", "level": "90%", "severity": "warning", "device": "disk1"},
    "ci-1": {"alert": "write_threshold", "level": "95%", "severity": "error", "device": "disk0"},
}
ALERT_SERIES: Final = [
    *(constant("qemu_alert_firing", lambda _: 1, vm, **labels) for vm, labels in ALERT_OF.items()),
    constant("qemu_vm_up", lambda number: float(number != 2)),
    counter("qemu_vm_events_total", 1, event="STOP"),
    counter("qemu_vm_events_total", 1, event="RTC_CHANGE"),
    constant("qemu_runstate_status", lambda _: 1, "web-1", status="io-error"),
    constant("qemu_runstate_status", lambda _: 1, "db-1", "ci-1", status="running"),
]


def is_severe(vm: str) -> float:
    """Return 1 for a VM whose alert is critical or an error; else 0."""
    return float(ALERT_OF[vm]["severity"] in ("critical", "error"))


ALERT_VALUES: Final[Sequence[tuple[str, Sequence[Result]]]] = (
    ("Critical and error", [number(is_severe)]),
    ("Warning", [number(lambda vm: 1 - is_severe(vm))]),
    ("VMs with alerts", [number(lambda _: 1)]),
    ("VMs that do not respond", [number(lambda vm: float(vm == "db-1"))]),
    ("Firing", [Expected(lambda host, vm: (vm_labels(host, vm, **ALERT_OF[vm]), 1.0))] * 2),
    ("Firing by alert", [Expected(lambda _, vm: ({"alert": ALERT_OF[vm]["alert"]}, 1.0))]),
    ("Firing by host", [Expected(lambda host, _: ({"instance": f"{host}:9179"}, 1.0))]),
    ("Events that change the state of VMs", [Expected(lambda _, vm: ({"event": "STOP"}, 5.0 * NUMBERS[vm]))]),
    (
        "VMs whose run state is an error",
        [Expected(lambda host, vm: (vm_labels(host, vm, status="io-error"), 1.0) if vm == "web-1" else None)],
    ),
)

# --- Guests ---

ROOT_FS: Final = {"mountpoint": "/", "device": "vda1", "type": "ext4"}
VAR_FS: Final = {"mountpoint": "/var", "device": "vda2", "type": "xfs"}


def used_share(number: int) -> float:
    return 0.1875 * number + 0.25


GUEST_SERIES: Final = [
    constant("qemu_vm_up", lambda _: 1),
    constant("qemu_guest_agent_session_state", lambda _: 1, "web-1", "ci-1", state="up"),
    constant("qemu_guest_agent_session_state", lambda _: 1, "db-1", state="unresponsive"),
    constant("qemu_guest_filesystem_size_bytes", lambda number: 1000.0 * number, **ROOT_FS),
    constant("qemu_guest_filesystem_used_bytes", lambda number: 1000.0 * number * used_share(number), **ROOT_FS),
    constant("qemu_guest_filesystem_available_bytes", lambda number: 10.0 * number, **ROOT_FS),
    constant("qemu_guest_freeze_frozen", lambda number: float(number == 2)),
    constant("qemu_guest_load_average_1m", lambda number: 1.5 * number),
    constant("qemu_guest_memory_available_bytes", lambda number: 250.0 * number),
    constant("qemu_guest_memory_total_bytes", lambda _: 1000),
    counter("qemu_guest_memory_swap_out_bytes_total", 120),
    constant("qemu_guest_clock_offset_seconds", lambda number: -0.5 * number),
]
STATE_OF: Final = {"web-1": "up", "db-1": "unresponsive", "ci-1": "up"}

GUEST_VALUES: Final[Sequence[tuple[str, Sequence[Result]]]] = (
    ("Guest agents up", [number(lambda vm: float(STATE_OF[vm] == "up"))]),
    ("Guest agents not up", [number(lambda vm: float(STATE_OF[vm] != "up"))]),
    ("File systems over 90 %", [number(lambda vm: float(vm == "ci-1"))]),
    ("Guests with frozen file systems", [number(lambda vm: float(vm == "db-1"))]),
    (
        "File systems",
        [
            per_vm_and_host(used_share, **ROOT_FS),
            per_vm_and_host(lambda number: 10.0 * number, name="qemu_guest_filesystem_available_bytes", **ROOT_FS),
            per_vm_and_host(lambda number: 1000.0 * number, name="qemu_guest_filesystem_size_bytes", **ROOT_FS),
        ],
    ),
    ("Fullest file system of each guest", [per_vm(used_share, max)]),
    ("Load, 1 minute", [per_vm_and_host(lambda number: 1.5 * number)]),
    ("Available memory", [per_vm_and_host(lambda number: 0.25 * number)]),
    ("Swapped out", [per_vm(lambda number: 2.0 * number, sum)]),
    ("Guest agents", [Expected(lambda host, vm: (vm_labels(host, vm, state=STATE_OF[vm]), 1.0))]),
    ("Clock offset", [per_vm_and_host(lambda number: -0.5 * number)]),
)

# --- KubeVirt ---

KUBEVIRT_SERIES: Final = [
    *(constant("qemu_vm_info", lambda _: 1, vm, namespace="shop", name=vm, node="node-{host}") for vm in NUMBERS),
    constant("qemu_alert_firing", lambda _: 1, "web-1", "ci-1", alert="write_threshold", device="disk0"),
    constant("qemu_alert_firing", lambda _: 1, "ci-1", alert="write_threshold", device="disk1"),
    constant("qemu_runstate_running", lambda number: float(number != 2)),
    counter("qemu_vcpu_cpu_seconds_total", 30, vcpu="0"),
    counter("qemu_vcpu_cpu_seconds_total", 30, vcpu="1"),
    counter("qemu_vcpu_run_delay_seconds_total", 6, vcpu="0"),
    constant("qemu_process_resident_bytes", lambda number: 1000.0 * number),
    counter("qemu_block_read_bytes_total", 60, device="disk0"),
    counter("qemu_block_write_bytes_total", 120, device="disk0"),
    counter("qemu_block_write_seconds_total", 15, device="disk0"),
    counter("qemu_block_writes_total", 60, device="disk0"),
    counter("qemu_net_receive_bytes_total", 600, interface="tap0"),
    counter("qemu_net_transmit_bytes_total", 1200, interface="tap0"),
]


def per_name(value: Callable[[int], float]) -> Expected:
    """Return the result of a query with a row for each VM of each node, by its names in Kubernetes."""
    return Expected(
        lambda host, vm: ({"namespace": "shop", "name": vm, "node": f"node-{host}"}, value(NUMBERS[vm])),
    )


KUBEVIRT_VALUES: Final[Sequence[tuple[str, Sequence[Result]]]] = (
    ("VMs", [Distinct(of_vms=True)]),
    ("Nodes", [Distinct(of_vms=False)]),
    ("Alerts firing", [number(lambda vm: {"web-1": 1.0, "ci-1": 2.0}.get(vm, 0.0))]),
    ("Not running", [number(lambda vm: float(vm == "db-1"))]),
    (
        "VMs",
        [
            per_name(lambda number: 1.0 * number),
            per_name(lambda number: number / 10),
            per_name(lambda number: 1000.0 * number),
            per_name(lambda number: 1.0 * number),
            per_name(lambda number: 2.0 * number),
        ],
    ),
    ("CPUs used", [per_name(lambda number: 1.0 * number)]),
    ("Steal", [per_name(lambda number: number / 10)]),
    ("Mean latency of writes", [per_name(lambda _: 0.25)]),
    ("Traffic", [per_name(lambda number: 10.0 * number), per_name(lambda number: 20.0 * number)]),
)


DASHBOARDS: Final = {
    "alerts": (ALERTS, ALERT_SERIES, ALERT_VALUES),
    "guests": (GUESTS, GUEST_SERIES, GUEST_VALUES),
    "KubeVirt": (KUBEVIRT, KUBEVIRT_SERIES, KUBEVIRT_VALUES),
}


@pytest.mark.parametrize("state", STATES)
@pytest.mark.parametrize("name", DASHBOARDS)
def test_each_query_of_each_panel_returns_exactly_the_known_values(tmp_path: Path, name: str, state: str) -> None:
    dashboard, known, values = DASHBOARDS[name]
    panels = [panel for row in dashboard.rows.values() for panel in row]
    assert [panel.title for panel in panels] == [title for title, _ in values]
    present, gone = STATES[state]
    series = [
        {"series": f'qmp_agent_build_info{{instance="{host}:9179"}}', "values": "1x10"} for host in ("hv1", "hv2")
    ]
    for sightings, end in ((present, "x10"), (gone, "x2 stale")):
        series += [one.as_input(host, vm, end) for host, vm in sightings for one in known if vm in one.vms]
    tests = [
        {
            "expr": substitute(query),
            "eval_time": "9m",
            "exp_samples": [{"labels": labels, "value": value} for labels, value in result.samples(present).items()],
        }
        for panel, (_, results) in zip(panels, values, strict=True)
        for query, result in zip(panel.queries, results, strict=True)
    ]
    path = tmp_path / "test.json"
    path.write_text(json.dumps({"tests": [{"interval": "1m", "input_series": series, "promql_expr_test": tests}]}))
    promtool("test", "rules", path)
