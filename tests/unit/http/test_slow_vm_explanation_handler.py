"""/explain names a VM by UUID or name, and explains it from the snapshot and its own alerts only."""

import json
import time
from typing import Any

from aiohttp.test_utils import TestClient, TestServer
from aiohttp.web import Application, Request

from agent.exposition.explain.cause_table import NO_CAUSE_TEXT
from agent.http.handlers import create_application
from agent.model.metrics.runstate import RUNSTATE
from tests.lab.endpoint import FakeView
from tests.lab.snapshots import UUIDS, put, status, vm

Client = TestClient[Request, Application]


class ViewWithAlerts(FakeView):
    """A view whose two VMs have an alert each."""

    def firing_alerts(self) -> list[dict[str, Any]]:
        rows = ((UUIDS[0], "memory_failure"), (UUIDS[1], "quorum_failure"))
        alert = {"subject": "", "severity": "error", "since": time.time() - 60}
        return [alert | {"uuid": uuid, "alert": name} for uuid, name in rows]


async def get(client: Client, query: str, expected: int = 200) -> str:
    async with client.get(f"/explain{query}") as response:
        assert response.status == expected
        return await response.text()


async def test_a_vm_is_explained_by_its_uuid_and_by_its_name(client: Client, view: FakeView) -> None:
    view.snapshot.update_monitor_status(status(vm()))
    by_uuid, by_name = [json.loads(await get(client, f"?vm={key}")) for key in (UUIDS[0], "vm1")]
    assert (by_uuid["name"], by_uuid["uuid"], by_uuid["state"]) == ("vm1", UUIDS[0], "up")
    assert by_uuid["causes"] == by_name["causes"] == []
    assert by_uuid["summary"] == NO_CAUSE_TEXT
    put(view.snapshot, vm(), RUNSTATE, ((), {"status": "watchdog", "running": False}))
    stopped = json.loads(await get(client, "?vm=vm1"))
    assert stopped["summary"] == stopped["causes"][0]["sentence"]
    assert stopped["causes"][0] | {"sentence": ""} == {
        "cause": "not_running",
        "subject": "",
        "sentence": "",
        "figures": {"status": "watchdog"},
    }


async def test_unknown_and_ambiguous_vms_are_refused(client: Client, view: FakeView) -> None:
    assert "name a VM" in await get(client, "", 400)
    assert await get(client, "?vm=db%1b1", 404) == "the agent watches no VM named db\ufffd1\n"
    for number in (0, 1):
        view.snapshot.update_monitor_status(status(vm(number, "twin", f"/run/vm{number}.qmp")))
    assert await get(client, "?vm=twin", 409) == "2 VMs are named twin: use the UUID\n"
    await get(client, f"?vm={UUIDS[1]}")


async def test_only_the_alerts_of_the_vm_explain_it() -> None:
    view = ViewWithAlerts()
    view.snapshot.update_monitor_status(status(vm()))
    async with TestClient(TestServer(create_application(view))) as client:
        causes = json.loads(await get(client, "?vm=vm1"))["causes"]
    assert [cause["sentence"] for cause in causes] == ["The alert memory_failure has been firing for 60 s."]
