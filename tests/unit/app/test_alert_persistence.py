"""Persistent entries of alerts: each is due until it is on disk."""

from typing import Any

from agent.alerts.pool_usage import PoolRegistry
from agent.app.alert_publisher import AlertPublisher
from agent.config.model import AlertsConfig
from agent.model.persistent_entry import PersistentEntry
from tests.lab.thin_disks import HOST, VM


class ScriptedDelivery:
    """Delivery with a journal that stores the entries, or has failed.

    Attributes:
        journal: this object.
        error: why the journal does not work; None if it does.
        stored: names of the stored entries.
    """

    def __init__(self) -> None:
        self.journal, self.delivery = self, self
        self.error: str | None = None
        self.stored: list[str] = []

    async def store_entry_in_journal(self, entry: PersistentEntry) -> bool:
        self.stored.append(entry.name)
        return True

    def publish(self, *_: Any) -> None:
        """Publish nothing."""


async def test_the_entry_of_a_guest_that_runs_is_stored_once_the_journal_works() -> None:
    delivery: Any = ScriptedDelivery()
    alerts = AlertPublisher(HOST, AlertsConfig(), delivery, PoolRegistry())
    alerts.engine.on_attached(VM, 1, 7)
    alerts.engine.on_run_state(VM, 2, running=True, status="running")
    delivery.error = "the disk is full"
    await alerts.tick()
    assert delivery.stored == []
    delivery.error = None
    await alerts.tick()
    await alerts.tick()
    assert delivery.stored == [f"alerts/{VM.uuid}"]
