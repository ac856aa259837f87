"""Two scraped hosts with one VM, as in every migration: no documented join, rule or dashboard query fails as many-to-many."""

import json
import re
from collections.abc import Iterator
from itertools import product
from pathlib import Path
from typing import Any, Final

import pytest

from dashboards import DASHBOARDS
from tests.integration.prometheus.test_rules import FOLDER, ROOT, promtool

VM: Final = {"vm_uuid": "u1", "vm": "web-3"}
PER_HOST: Final = {
    "monitor",
    "pid",
    "machine",
    "qemu_version",
    "qemu_package",
    "accelerator",
    "status",
    "state",
    "path",
}
"""Labels with one value for each host; the others name subjects, two for each host."""
VARIABLES: Final = {
    "$__rate_interval": "5m",
    "$__range": "5m",
    "$hosts": ".*",
    "$host": "hv1:9179",
    "$vm": ".*",
    "$uuid": "u1",
    "$disk": "device0",
    "$alert": ".*",
    "$namespace": ".*",
    "$name": ".*",
}


def exported() -> Iterator[tuple[str, list[str]]]:
    """Yield the name and the labels of each series in docs/reference/metrics.md, which is generated from the code."""
    rows = re.findall(
        r"^\| `(q\w+)` \| \w+ \|[^|]*\|([^|]*)\|", (ROOT / "docs/reference/metrics.md").read_text(), re.MULTILINE
    )
    for name, labels in rows:
        yield name, re.findall(r"`(\w+)`", labels)


def input_series() -> list[dict[str, str]]:
    """Return every series of two hosts that report the same VM."""
    result = []
    for host, (name, labels) in product(("hv1", "hv2"), exported()):
        own = {"instance": f"{host}:9179", "job": "qmp-agent"}
        choices = [
            [VM[label]] if label in VM else [f"{host}-{label}"] if label in PER_HOST else [f"{label}0", f"{label}1"]
            for label in labels
        ]
        for values in product(*choices):
            text = ",".join(f'{key}="{value}"' for key, value in (own | dict(zip(labels, values, strict=True))).items())
            result.append({"series": f"{name}{{{text}}}", "values": "1+1x10"})
    return result


def evaluate(folder: Path, *expressions: str, files: tuple[Path, ...] = ()) -> None:
    """Evaluate expressions and rule files on the series of both hosts; fail if Prometheus reports an error."""
    rules = [{"record": f"test:expression{number}", "expr": text} for number, text in enumerate(expressions)]
    (folder / "rules.json").write_text(json.dumps({"groups": [{"name": "test", "rules": rules}]}))
    constant = {"expr": "1", "eval_time": "9m", "exp_samples": [{"labels": "{}", "value": 1}]}
    test = {"interval": "1m", "input_series": input_series(), "promql_expr_test": [constant]}
    suite = {
        "rule_files": [str(folder / "rules.json"), *map(str, files)],
        "evaluation_interval": "1m",
        "tests": [test],
    }
    (folder / "test.json").write_text(json.dumps(suite))
    promtool("test", "rules", folder / "test.json")


def substitute(query: str) -> str:
    for name, value in VARIABLES.items():
        query = query.replace(name, value)
    return query


def test_every_series_of_the_documentation_is_part_of_the_input() -> None:
    names = {series["series"].partition("{")[0] for series in input_series()}
    assert len(names) > 200
    assert {"qemu_vm_info", "qemu_vm_up", "qemu_block_reads_total", "qmp_agent_records_total"} <= names


def test_a_join_on_the_uuid_alone_fails(tmp_path: Path) -> None:
    with pytest.raises(AssertionError, match=r"many-to-many|duplicate series"):
        evaluate(tmp_path, "qemu_vm_up * on (vm_uuid) group_left (qemu_version) qemu_vm_info")


def test_the_documented_joins_work(tmp_path: Path) -> None:
    documents = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
    joins = [
        line.strip()
        for document in documents
        for line in document.read_text().splitlines()
        if re.search(r"\bon \(.*\) group_(left|right)", line) and line.startswith("    ")
    ]
    assert joins
    evaluate(tmp_path, *joins)


@pytest.mark.parametrize(
    "file", ["alerts.yml", "libvirt-names-debian.yml", "libvirt-names-tinkoff.yml", "kubevirt-names.yml"]
)
def test_the_rules_work(tmp_path: Path, file: str) -> None:
    evaluate(tmp_path, files=(FOLDER / file,))


@pytest.mark.parametrize("dashboard", DASHBOARDS, ids=lambda dashboard: str(dashboard.uid))
def test_the_dashboards_queries_work(tmp_path: Path, dashboard: Any) -> None:
    evaluate(tmp_path, *(substitute(query) for _, query in dashboard.queries()))
