"""Bodies of the requests to Alertmanager."""

from dataclasses import replace
from datetime import datetime
from typing import Any

from agent.alerts.alertmanager_request import (
    ENDS_AFTER_INTERVALS,
    RESOLVED_SECONDS,
    AlertmanagerRequests,
    AlertmanagerSettings,
)
from agent.alerts.store import Alert
from agent.model.record import Severity, Vm

NOW = 1_700_000_000.0
RESEND = 60.0


def alert_of(level: str = "80%", since: float = NOW, **data: object) -> Alert:
    vm = Vm("hv7", "5bd1a5a4-5c0f-4d54-9d0b-7f2f4ad4d2e1", "web-3", "/run/web.qmp")
    return Alert("write_threshold", vm, "disk0", level, Severity.WARNING, int(since * 1e9), {"used_bytes": 5, **data})


def parse_time(text: str) -> float:
    assert text.endswith("Z")
    return datetime.fromisoformat(text).timestamp()


def requests_with(labels: dict[str, str] | None = None, watchdog: float | None = None) -> AlertmanagerRequests:
    return AlertmanagerRequests("hv7", NOW - 100, AlertmanagerSettings(RESEND, labels or {}, watchdog))


def test_labels_are_stable_and_annotations_have_the_figures() -> None:
    (body,) = requests_with({"cluster": "eu1"}).compose([alert_of(since=NOW - 5)], NOW)
    assert body["labels"] == {
        "alertname": "write_threshold",
        "severity": "warning",
        "host": "hv7",
        "vm": "web-3",
        "vm_uuid": "5bd1a5a4-5c0f-4d54-9d0b-7f2f4ad4d2e1",
        "device": "disk0",
        "level": "80%",
        "cluster": "eu1",
    }
    summary = "web-3 disk0: write threshold 80%"
    assert body["annotations"] == {
        "used_bytes": "5",
        "summary": summary,
        "fingerprint": alert_of().fingerprint,
        "resolved_by": "agent lost",
    }
    assert parse_time(body["startsAt"]) == NOW - 5


def test_the_summary_has_the_size_of_a_foreign_threshold() -> None:
    (body,) = requests_with().compose([alert_of(level="threshold 1441792")], NOW)
    assert body["annotations"]["summary"] == "web-3 disk0: write threshold of 1.38 MiB"


def test_empty_labels_are_left_out() -> None:
    (body,) = requests_with({"cluster": ""}).compose([alert_of(level="")], NOW)
    assert {"level", "cluster"}.isdisjoint(body["labels"])


def test_a_firing_alert_ends_some_intervals_after_each_request() -> None:
    client = requests_with()
    for now in (NOW, NOW + RESEND, NOW + 9 * RESEND):
        (body,) = client.compose([alert_of()], now)
        assert parse_time(body["endsAt"]) == now + ENDS_AFTER_INTERVALS * RESEND
        assert parse_time(body["startsAt"]) == NOW


def test_a_resolved_alert_is_sent_for_a_limited_time() -> None:
    client = requests_with()
    client.compose([alert_of("80%"), alert_of("90%")], NOW)
    for now in (NOW + 1, NOW + RESOLVED_SECONDS):
        firing, resolved = client.compose([alert_of("90%")], now)
        assert (firing["labels"]["level"], resolved["labels"]["level"]) == ("90%", "80%")
        assert parse_time(resolved["endsAt"]) == NOW + 1
    assert len(client.compose([alert_of("90%")], NOW + RESOLVED_SECONDS + 1)) == 1


def test_an_alert_that_fires_again_is_not_resolved() -> None:
    client = requests_with()
    client.compose([alert_of()], NOW)
    client.compose([], NOW + 1)
    (body,) = client.compose([alert_of(since=NOW + 2)], NOW + 2)
    assert parse_time(body["endsAt"]) > parse_time(body["startsAt"]) == NOW + 2


def test_no_alert_ends_before_it_starts_when_clocks_differ() -> None:
    # Alertmanager rejects such an alert. QEMU's clock, which gives the start, may have been set back since.
    client = requests_with()
    client.compose([alert_of(since=NOW + 1000)], NOW)
    (body,) = client.compose([], NOW + 1)
    assert body["endsAt"] == body["startsAt"]


def test_an_alert_that_the_agent_resolved_has_its_cause_in_place_of_agent_lost() -> None:
    requests = requests_with()
    requests.compose([alert_of("80%"), alert_of("90%")], NOW)
    requests.on_resolved(alert_of("80%").fingerprint, "RESUME")
    resolved = {
        body["labels"]["level"]: body["annotations"].get("resolved_by") for body in requests.compose([], NOW + 1)
    }
    assert resolved == {"80%": "RESUME", "90%": None}
    assert requests.compose([], NOW + 2)[0]["annotations"]["resolved_by"] == "RESUME", "it is kept for the repetitions"


def test_causes_are_not_stored_without_an_alertmanager() -> None:
    requests = AlertmanagerRequests("hv7", NOW)
    requests.on_resolved("fingerprint", "RESUME")
    assert not requests._causes


def test_the_watchdog_inhibits_first_and_agent_lost_outlives_the_agent() -> None:
    running, lost, alert = requests_with({"cluster": "eu1"}, 86400.0).compose([alert_of()], NOW)
    assert running["labels"] | {"alertname": "agent_lost", "severity": "critical"} == lost["labels"]
    assert lost["labels"] | {"run": ""} == {
        "alertname": "agent_lost",
        "severity": "critical",
        "host": "hv7",
        "cluster": "eu1",
        "run": "",
    }
    assert parse_time(lost["labels"]["run"]) == NOW - 100
    assert parse_time(lost["endsAt"]) == NOW + 86400
    assert parse_time(running["endsAt"]) < parse_time(alert["endsAt"]), "agent_lost fires before other alerts end"


def test_agent_lost_of_earlier_runs_only_is_resolved_at_the_start() -> None:
    requests = requests_with(watchdog=86400.0)
    _, own = requests.compose([], NOW)
    earlier: dict[str, Any] = {"labels": {"alertname": "agent_lost", "host": "hv7", "run": "2020-01-01T00:00:00Z"}}
    earlier["startsAt"] = "2020-01-01T00:00:00Z"
    other = {"labels": {"alertname": "disk_full", "host": "hv7"}}
    (ended,) = requests.compose_agent_lost_resolution([own, earlier, other, "garbage", {"labels": 5}], NOW)
    assert ended["labels"] == earlier["labels"]
    assert (ended["startsAt"], parse_time(ended["endsAt"])) == (earlier["startsAt"], NOW)
    assert requests.compose_agent_lost_resolution("garbage", NOW) == []


def test_the_filter_for_earlier_runs_quotes_the_host() -> None:
    requests = AlertmanagerRequests('a"b\\', NOW, replace(AlertmanagerSettings()))
    assert requests.agent_lost_query_parameters()[1] == ("filter", 'host="a\\"b\\\\"')
