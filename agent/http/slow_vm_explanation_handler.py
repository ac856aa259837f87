"""Request handler of /explain: why a VM is slow or hangs, for the page and `qmp-agent explain`."""

import time
from typing import Any

from aiohttp import web

from agent.exposition.explain.cause_table import NO_CAUSE_TEXT, find_causes
from agent.exposition.explain.evidence import Evidence
from agent.exposition.snapshot import VmView
from agent.http.overview import OverviewSource
from agent.model.json_encoding import encode_json
from agent.model.record import Vm, sanitize


class SlowVmExplanationHandler:
    """Request handler that explains a VM's state from stored values, without commands to QEMU."""

    def __init__(self, source: OverviewSource) -> None:
        self._source = source

    async def explain_slow_vm(self, request: web.Request) -> web.Response:
        """Return the explanation as JSON. The query parameter `vm` is the VM's UUID or name."""
        vm, view = self._find(request.query.get("vm", ""))
        return web.Response(
            body=encode_json(slow_vm_explanation_json(self._source, vm, view)), content_type="application/json"
        )

    def _find(self, name: str) -> tuple[Vm, VmView]:
        """Return the VM with this UUID or name.

        Raises:
            HTTPBadRequest: no name was given.
            HTTPNotFound: the agent watches no such VM.
            HTTPConflict: several VMs have the name.
        """
        if not name:
            raise web.HTTPBadRequest(text="name a VM: /explain?vm=UUID or /explain?vm=NAME\n")
        views = list(self._source.snapshot.one_view_per_uuid())
        found = [row for row in views if row[0].uuid == name] or [row for row in views if row[0].name == name]
        if not found:
            raise web.HTTPNotFound(text=f"the agent watches no VM named {sanitize(name)}\n")
        if len(found) > 1:
            raise web.HTTPConflict(text=f"{len(found)} VMs are named {sanitize(name)}: use the UUID\n")
        return found[0]


def slow_vm_explanation_json(source: OverviewSource, vm: Vm, view: VmView) -> dict[str, Any]:
    """Return the explanation of a VM as JSON: the causes, the most likely first, and a summary in one sentence."""
    now = time.time()
    alerts = [alert for alert in source.firing_alerts() if alert["uuid"] == vm.uuid]
    causes = find_causes(Evidence.from_samples(source.snapshot, view, alerts, now))
    return {
        "uuid": vm.uuid,
        "name": sanitize(vm.name),
        "state": view.status.state.value,
        "time": now,
        "last_response": view.last_response_ns / 1e9,
        "summary": causes[0]["sentence"] if causes else NO_CAUSE_TEXT,
        "causes": causes,
    }
