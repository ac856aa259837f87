"""Conditions on samples in their details: unknown fields, older polls, alerts that last, and counters."""

from typing import Any

import pytest

from agent.alerts.rules.comparison import ComparedValue, FieldComparison, Operator, compare
from agent.alerts.rules.overrides import AlertOverrides
from agent.alerts.rules.rule_types import SampleAlertRule
from agent.alerts.rules.sample_rule_evaluator import MAX_RULE_SUBJECTS
from agent.model.family import Sample
from agent.model.metrics.block import BLOCK
from agent.model.metrics.memory import BALLOON, GUEST_MEMORY, MEMORY
from agent.model.record import Severity
from tests.lab.alert_scenario import AlertScenario, Change
from tests.lab.thin_disks import GIB, VM

FIRING, RESOLVED = ("mine", "disk0", "firing"), ("mine", "disk0", "resolved")


def watch(scenario: AlertScenario, **options: Any) -> None:
    """Let an alert of the config's own fire while a disk has more than ten reads, or on another condition."""
    fields: dict[str, Any] = {
        "operator": Operator.ABOVE,
        "value": 10.0,
        "severity": Severity.INFO,
        "help": "Mine.",
    } | options
    row = SampleAlertRule(alert="mine", family=BLOCK, field="reads_total", custom=True, **fields)
    scenario.engine.set_overrides(AlertOverrides(), [row])


def poll(scenario: AlertScenario, at: float, device: str = "disk0", **values: Any) -> list[Change]:
    return scenario.samples(at, BLOCK, Sample(BLOCK, (device,), values))


def test_a_poll_that_is_older_than_the_alert_does_not_resolve_it(scenario: AlertScenario) -> None:
    watch(scenario)
    assert poll(scenario, 10, reads_total=11) == [FIRING]
    assert poll(scenario, 9, reads_total=1) == []
    assert poll(scenario, 10, reads_total=1) == [RESOLVED]


@pytest.mark.parametrize(
    ("operator", "firing", "within", "beyond"),
    [
        (Operator.ABOVE, 11, 8, 7),
        (Operator.AT_LEAST, 10, 7, 6),
        (Operator.BELOW, 9, 12, 13),
        (Operator.AT_MOST, 10, 13, 14),
    ],
)
def test_an_alert_is_resolved_beyond_its_hysteresis(
    scenario: AlertScenario, operator: Operator, firing: int, within: int, beyond: int
) -> None:
    watch(scenario, operator=operator, hysteresis=3.0)
    assert poll(scenario, 1, reads_total=within) == []
    assert poll(scenario, 2, reads_total=firing) == [FIRING]
    assert poll(scenario, 3, reads_total=within) == []
    assert poll(scenario, 4, reads_total=beyond) == [RESOLVED]


@pytest.mark.parametrize(("value", "limit"), [("b", "a"), (True, False), (5, True), (True, 0), ("5", 1.0), (None, 1.0)])
@pytest.mark.parametrize("operator", [Operator.ABOVE, Operator.AT_LEAST])
def test_values_without_an_order_are_not_compared(value: object, operator: Operator, limit: ComparedValue) -> None:
    assert compare(value, operator, limit) is None


@pytest.mark.parametrize("value", [[1], {"a": 1}, None, b"a"])
def test_a_value_that_is_no_flag_number_or_text_is_not_compared(value: object) -> None:
    assert compare(value, Operator.UNEQUAL, "a") is None
    assert FieldComparison(("outer", "inner"), Operator.UNEQUAL, "a").check({"outer": value}) is None


def test_an_alert_that_no_sample_resolves_ends_with_its_subject(scenario: AlertScenario) -> None:
    watch(scenario, resolved_when_false=False)
    assert poll(scenario, 1, reads_total=11) == [FIRING]
    assert poll(scenario, 2, reads_total=1) == []
    assert scenario.samples(3, BLOCK) == [RESOLVED]


def test_an_unknown_field_neither_fires_nor_resolves_an_alert(scenario: AlertScenario) -> None:
    watch(scenario, where=(FieldComparison(("writes_total",), Operator.ABOVE, 5.0),))
    assert poll(scenario, 1, reads_total=11) == poll(scenario, 1, reads_total=11, writes_total=5) == []
    assert poll(scenario, 2, reads_total=11, writes_total=6) == [FIRING]
    assert poll(scenario, 3, reads_total=11) == poll(scenario, 4, writes_total=6) == []
    assert poll(scenario, 5, reads_total=1) == [RESOLVED], "whatever the number of writes is"
    assert poll(scenario, 6, reads_total=11, writes_total=6) == [FIRING]
    assert poll(scenario, 7, reads_total=11, writes_total=5) == [RESOLVED]


def test_a_copied_field_of_a_sample_is_a_safe_text_or_a_number(scenario: AlertScenario) -> None:
    watch(scenario, copied_fields=("text", "number", "list", "absent"))
    poll(scenario, 1, reads_total=11, text="a\x1b[31m", number=5, list=[1])
    data = scenario.emitted[-1].data
    assert (data["text"], data["number"], data["reads_total"]) == ("a\ufffd[31m", 5, 11)
    assert not {"list", "absent"} & data.keys()


def test_an_alert_that_lasts_for_a_time_does_not_end_with_its_subject(scenario: AlertScenario) -> None:
    watch(scenario, resolve_after_seconds=60.0)
    assert poll(scenario, 0, reads_total=11) == [FIRING]
    assert poll(scenario, 10, reads_total=1) == scenario.samples(20, BLOCK) == scenario.tick(59) == []
    assert scenario.tick(60) == [RESOLVED]


@pytest.mark.parametrize("values", [(False, True), ("a", "b"), (None, 5), (5, 5), (5, 4)])
def test_only_a_number_that_is_higher_than_before_has_increased(
    scenario: AlertScenario, values: tuple[Any, Any]
) -> None:
    watch(scenario, operator=Operator.INCREASES)
    before, after = values
    assert poll(scenario, 1, reads_total=before) == poll(scenario, 2, reads_total=after) == []


def test_the_counter_of_a_disk_that_comes_back_begins_again(scenario: AlertScenario) -> None:
    watch(scenario, operator=Operator.INCREASES)
    poll(scenario, 1, reads_total=7)
    poll(scenario, 2, device="disk1", reads_total=7)
    assert poll(scenario, 3, reads_total=8) == []
    assert poll(scenario, 4, reads_total=9) == [FIRING]


def test_a_balloon_that_is_gone_holds_no_memory(scenario: AlertScenario) -> None:
    low = Sample(GUEST_MEMORY, (), {"available_bytes": GIB // 100, "total_bytes": 2 * GIB})
    scenario.samples(0, MEMORY, Sample(MEMORY, (), {"base_bytes": 4 * GIB}))
    scenario.samples(0, BALLOON, Sample(BALLOON, (), {"actual_bytes": 2 * GIB}))
    scenario.samples(1, BALLOON)
    assert scenario.samples(2, GUEST_MEMORY, low) == scenario.samples(1000, GUEST_MEMORY, low) == []


def test_a_hostile_vm_cannot_fill_the_memory_of_counters(scenario: AlertScenario) -> None:
    watch(scenario, operator=Operator.INCREASES)
    scenario.samples(1, BLOCK, *(Sample(BLOCK, (f"d{n}",), {"reads_total": 1}) for n in range(2 * MAX_RULE_SUBJECTS)))
    (state,) = scenario.engine._processes.processes_with_uuid(VM.uuid)
    assert len(state.rule_state.previous) == MAX_RULE_SUBJECTS
    assert scenario.engine.store.suppressed == MAX_RULE_SUBJECTS
