"""The page in a real browser, with a fake state of the agent: natural order of names, and collectors that are off."""

from dataclasses import replace
from pathlib import Path
from typing import Any, Final

from playwright.async_api import expect

from agent.model.family import Sample
from agent.model.metrics.pool import POOL
from agent.model.record import Vm
from tests.lab.browser import chromium, open_page
from tests.lab.endpoint import RunningEndpoint
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
        endpoint.view.health = agent_state  # type: ignore[method-assign]
        for number, name in enumerate(reversed(NAMES)):
            vm = Vm("hv1", f"{number:08}-1111-4111-8111-111111111111", name, f"/run/qmp/{name[:20]}")
            endpoint.view.snapshot.update_status(status(vm))
            endpoint.view.broadcaster.publish(endpoint.encode(event(vm, "STOP")))
        async with chromium() as browser, open_page(browser, endpoint.url) as page:
            await expect(page.locator("#vms tbody th")).to_have_text(NAMES)
            await expect(page.locator("#agent tbody th")).to_have_text([f"/run/qmp/{name[:20]}" for name in NAMES])
            await expect(page.locator("#events-vm option")).to_have_text(["all", *NAMES])
            await page.get_by_role("button", name="VM", exact=True).click()
            await expect(page.locator("#vms tbody th")).to_have_text(NAMES[::-1])


async def test_a_collector_that_is_off_is_shown_with_its_cause(folder: Path) -> None:
    async with RunningEndpoint(folder).open() as endpoint:
        endpoint.view.health = agent_state  # type: ignore[method-assign]
        healthy, degraded = (Vm("hv1", f"{number}" * 36, f"vm{number}", f"/run/vm{number}.qmp") for number in (1, 2))
        endpoint.view.snapshot.update_status(status(healthy))
        causes = (("block", "not JSON: <b>"), ("nodes", "the answer is too long"))
        endpoint.view.snapshot.update_status(replace(status(degraded), degraded=causes))
        async with chromium() as browser, open_page(browser, endpoint.url) as page:
            rows = page.locator("#vms tbody tr")
            await expect(rows.nth(0)).not_to_contain_text("off")
            await expect(rows.nth(1)).to_contain_text("collectors off: block, nodes")
            await page.get_by_role("link", name="vm2").first.click()
            facts = page.locator("#detail .facts")
            await expect(facts).to_contain_text("block: not JSON: <b>; nodes: the answer is too long")
            endpoint.view.snapshot.update_status(status(degraded))
            await expect(facts).not_to_contain_text("block")


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
        endpoint.view.health = agent_state  # type: ignore[method-assign]
        snapshot = endpoint.view.snapshot
        snapshot.update_status(status(Vm("hv1", "1" * 36, "a", "/run/a.qmp")))
        snapshot.replace_host_sample(Sample(POOL, ("/srv/images", "filesystem"), pool))
        async with chromium() as browser, open_page(browser, endpoint.url) as page:
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
