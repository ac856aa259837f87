"""The page in a real browser, with a fake state of the agent: natural order of names, and collectors that are off."""

from dataclasses import replace
from pathlib import Path
from typing import Any, Final

from playwright.async_api import expect

from agent.alerts.catalogue import ALERT_CATALOGUE
from agent.model.family import Sample
from agent.model.metrics.block import BLOCK
from agent.model.metrics.host_resources import HOST, HOST_HUGEPAGES
from agent.model.metrics.storage_pool import POOL
from agent.model.record import Vm
from agent.session.shared_types import MonitorState
from tests.lab.browser import chromium, open_page
from tests.lab.endpoint import RunningEndpoint
from tests.lab.live_page import TIMING, live_page
from tests.lab.snapshots import event, status

NAMES: Final = ["db", "VM1", "vm1-a", "vm02", "vm3", "vm10", "vm10b", "vm20", f"vm{'9' * 200}"]


def agent_state() -> dict[str, Any]:
    """Return the part `agent` of an overview, with all members that the page needs."""
    queue = {"name": "events", "records": 0, "oldest_record_age_seconds": 0.0}
    return {
        "host": "hv1",
        "version": "0",
        "unready_reasons": [],
        "warnings": [],
        "sink": {"name": "jsonl", "error": None},
        "delivered": 0,
        "reconnects": 0,
        "queues": [queue],
        "dropped": [],
        "events_dropped": {},
    }


async def test_vm_names_are_in_natural_order_everywhere(folder: Path) -> None:
    async with RunningEndpoint(folder).open() as endpoint:
        endpoint.view.agent_health = agent_state  # type: ignore[method-assign]
        for number, name in enumerate(reversed(NAMES)):
            vm = Vm("hv1", f"{number:08}-1111-4111-8111-111111111111", name, f"/run/qmp/{name[:20]}")
            endpoint.view.snapshot.update_monitor_status(status(vm))
            endpoint.view.broadcaster.publish(endpoint.encode(event(vm, "STOP")))
        async with chromium() as browser, open_page(browser, endpoint.url) as page:
            names = page.locator("#vms [role=rowheader]")
            await expect(names).to_have_text(NAMES)
            await page.get_by_role("button", name="VM", exact=True).click()
            await expect(names).to_have_text(NAMES[::-1])
            await page.get_by_role("link", name="Agent", exact=True).click()
            monitors = page.locator("#monitors tbody th")
            await expect(monitors).to_have_text([f"/run/qmp/{name[:20]}" for name in NAMES])
            await page.get_by_role("link", name="Events", exact=True).click()
            await expect(page.locator("#events-vm option")).to_have_text(["all", *NAMES])


async def test_two_monitors_of_one_name_have_a_row_each(folder: Path) -> None:
    async with RunningEndpoint(folder).open() as endpoint:
        endpoint.view.agent_health = agent_state  # type: ignore[method-assign]
        owners = [Vm("hv1", f"{number}" * 36, f"vm{number}", "/run/vm.qmp") for number in (1, 2)]
        for owner, state in zip(owners, (MonitorState.STALLED, MonitorState.UP), strict=True):
            endpoint.view.snapshot.update_monitor_status(status(owner, state, key=owner.name))
        async with chromium() as browser, open_page(browser, f"{endpoint.url}/#/agent") as page:
            await expect(page.locator("#monitors tbody a")).to_have_text(["vm1", "vm2"])


async def test_a_collector_that_is_off_is_shown_with_its_cause(folder: Path) -> None:
    async with RunningEndpoint(folder).open() as endpoint:
        endpoint.view.agent_health = agent_state  # type: ignore[method-assign]
        healthy, degraded = (Vm("hv1", f"{number}" * 36, f"vm{number}", f"/run/vm{number}.qmp") for number in (1, 2))
        endpoint.view.snapshot.update_monitor_status(status(healthy))
        causes = (("block", "not JSON: <b>"), ("nodes", "the answer is too long"))
        endpoint.view.snapshot.update_monitor_status(replace(status(degraded), degraded=causes))
        async with chromium() as browser, open_page(browser, endpoint.url) as page:
            rows = page.locator("#vms .rows [role=row]")
            await expect(rows.nth(0)).not_to_contain_text("off")
            await expect(rows.nth(1)).to_contain_text("collectors off: block, nodes")
            await expect(page.locator("#attention li")).to_have_text("vm2 collectors off: block, nodes")
            await page.get_by_label("Filter", exact=True).fill("is:degraded")
            await expect(rows).to_have_count(1)
            await page.locator("#vms").get_by_role("link", name="vm2").click()
            facts = page.locator("#vm .facts")
            await expect(facts).to_contain_text("block: not JSON: <b>; nodes: the answer is too long")
            endpoint.view.snapshot.update_monitor_status(status(degraded))
            await expect(facts).not_to_contain_text("block")


async def test_the_host_shows_its_commitment_and_the_vms_that_wait_for_others(folder: Path) -> None:
    batch, web = (
        Vm("hv1", f"{number}" * 36, name, f"/run/{name}.qmp") for number, name in ((1, "batch"), (2, "<b>web"))
    )
    waits, takes = ({"uuid": vm.uuid, "vm": vm.name, "cpus": 0.6} for vm in (web, batch))
    found: dict[str, Any] = {"resource": "cpu", "pool": "", "kind": "", "waiting": [waits], "taking": [takes, waits]}
    found |= {"sentence": "1 VM waits for a CPU of the host: <b>web.", "waiting_vms": 1}
    values = {
        "vcpus": 12,
        "vcpu_commitment_ratio": 3.0,
        "unknown_vms": 0,
        "guest_memory_bytes": 6 << 30,
        "memory_commitment_ratio": 1.5,
        "load_1m": 2.5,
    }
    async with RunningEndpoint(folder).open() as endpoint:
        endpoint.view.agent_health = agent_state  # type: ignore[method-assign]
        snapshot = endpoint.view.snapshot
        for vm in (batch, web):
            snapshot.update_monitor_status(status(vm))
        pool = {"pool_bytes": 4 << 30, "free_bytes": 1 << 30, "reserved_bytes": 0}
        snapshot.replace_host_sample(Sample(HOST_HUGEPAGES, ("2M",), pool))
        snapshot.replace_host_sample(Sample(HOST, (), values | {"contention": [found]}))
        async with chromium() as browser, open_page(browser, f"{endpoint.url}/#/host") as page:
            facts = page.locator("#view .facts").first
            for text in ("12, 300 % of the CPUs", "6 GiB, 150 % of the memory", "1 GiB of 4 GiB free (2M)", "2.5"):
                await expect(facts).to_contain_text(text)
            for absent in ("KSM", "Swap", "Tasks wait for"):
                await expect(facts).not_to_contain_text(absent)
            section = page.locator("#contention")
            await expect(section).to_contain_text("1 VM waits for a CPU of the host: <b>web.")
            await expect(section.get_by_role("link")).to_have_text(["<b>web", "batch"])
            snapshot.replace_host_sample(Sample(HOST, (), values))
            await expect(section).to_be_hidden()


async def test_a_pool_shows_its_space_its_vms_and_that_it_does_not_answer(folder: Path) -> None:
    pool = {
        "type": "xfs",
        "responsive": True,
        "size_bytes": 100 << 30,
        "used_bytes": 60 << 30,
        "free_bytes": 20 << 30,
        "commitment_ratio": 1.5,
        "time_to_full_seconds": 7200,
        "vms": 6,
        "vm_names": ["a", "b", "c", "d", "<b>", "f"],
    }
    async with RunningEndpoint(folder).open() as endpoint:
        endpoint.view.agent_health = agent_state  # type: ignore[method-assign]
        snapshot = endpoint.view.snapshot
        snapshot.update_monitor_status(status(Vm("hv1", "1" * 36, "a", "/run/a.qmp")))
        snapshot.replace_host_sample(Sample(POOL, ("/srv/images", "filesystem"), pool))
        async with chromium() as browser, open_page(browser, f"{endpoint.url}/#/storage") as page:
            row = page.locator("#pools tbody tr")
            for text in (
                "/srv/images",
                "xfs",
                "60 GiB of 80 GiB · 75",
                "150",
                "committed",
                "2 h",
                "a, b, c, d and 2 more",
            ):
                await expect(row).to_contain_text(text)
            snapshot.replace_host_sample(Sample(POOL, ("/srv/images", "filesystem"), pool | {"responsive": False}))
            await expect(row).to_contain_text("xfs · does not answer")
            snapshot.remove_host_sample(POOL, ("/srv/images", "filesystem"))
            await expect(page.locator("#pools")).to_be_hidden()


async def test_an_alert_says_what_it_means_and_what_to_do(folder: Path) -> None:
    async with chromium() as browser, live_page(browser, folder, 60, "#/events") as live:
        alert = live.page.locator("#alerts li").filter(has_text="disk full")
        await expect(alert).to_contain_text(ALERT_CATALOGUE["disk_full"].help)
        action = alert.get_by_text("What to do:")
        await expect(action).to_be_hidden()
        await alert.locator("summary").click()
        await expect(action).to_be_visible()
        await expect(alert.locator("code", has_text="virsh resume")).to_be_visible()


async def test_the_agents_view_begins_with_its_health(folder: Path) -> None:
    state = agent_state()
    async with RunningEndpoint(folder, timing=TIMING).open() as endpoint:
        endpoint.view.agent_health = lambda: state  # type: ignore[method-assign]
        async with chromium() as browser, open_page(browser, f"{endpoint.url}/#/agent") as page:
            facts = page.locator(".facts")
            await expect(facts).to_contain_text("Healthready, no problems")
            state = state | {"warnings": ["the clock was set"]}
            await expect(facts).to_contain_text("Healthready, 1 problem")
            state = state | {"unready_reasons": ["nothing is delivered"]}
            await expect(facts).to_contain_text("Healthnot ready, 2 problems")


async def test_the_latency_of_a_disk_shows_who_set_its_histogram(folder: Path) -> None:
    vm = Vm("hv1", "1" * 36, "db-1", "/run/db-1.qmp")
    owners = {"disk0": "agent", "disk1": "other", "disk2": ""}
    async with RunningEndpoint(folder, timing=TIMING).open() as endpoint:
        endpoint.view.agent_health = agent_state  # type: ignore[method-assign]
        endpoint.view.latency_histogram_owner = lambda _vm, disk: owners[disk]  # type: ignore[method-assign]
        endpoint.view.snapshot.update_monitor_status(status(vm))
        for second in (0, 10):
            histogram = {"boundaries_seconds": [0.001, 0.1], "counts": [second * 194, second * 5, second]}
            samples = [Sample(BLOCK, (disk,), {"read_latency_seconds": histogram}) for disk in owners]
            endpoint.view.snapshot.replace_samples(vm, (BLOCK,), samples, second * 10**9)
        page_url = f"{endpoint.url}/#/vm/{vm.uuid}?tab=disks"
        async with chromium() as browser, open_page(browser, page_url) as page:
            disks = page.locator("#latencies tbody th")
            await expect(disks).to_have_text(
                ["disk0 histogram set by the agent", "disk1 histogram set by another client", "disk2 "]
            )
            cells = page.locator("#latencies tbody tr").first.get_by_role("cell")
            await expect(cells).to_have_text(["read", "515 µs", "80.2 ms", "≥ 100 ms", "200/s"])
