"""Publishes the alerts of storage pools. The journal stores the pools' state together with the alerts."""

import time
from collections.abc import Iterable
from functools import partial

from agent.alerts.engine import AlertChange
from agent.alerts.pool_usage import PoolUsage
from agent.app.alert_publisher import AlertPublisher
from agent.app.builders import pool_policy
from agent.config.model import PoolAlertsConfig
from agent.model.record import Record


class PoolAlertPublisher:
    """Passes the readings of pools to `PoolAlerts`, and publishes the alert records that `PoolAlerts` returns."""

    def __init__(self, alerts: AlertPublisher) -> None:
        self._publish_alerts = alerts.publish
        self._pools = alerts.pools

    def apply_config(self, config: PoolAlertsConfig) -> None:
        """Apply the alert levels of a new config."""
        for usage in self._pools.set_policy(partial(pool_policy, config)):
            self._publish(usage, self._pools.update_level_alerts(usage, time.time_ns()))

    def on_reading(self, usage: PoolUsage) -> None:
        """Update the alerts of a pool after it was read."""
        self._publish(usage, self._pools.on_reading(usage, time.time_ns()))

    def on_responded_with_error(self, usage: PoolUsage) -> None:
        """Resolve the alerts about an unresponsive pool, because the pool has responded, although with an error."""
        self._publish(usage, self._pools.on_pool_answered(usage, time.time_ns()))

    def on_unresponsive(self, usage: PoolUsage) -> None:
        """Update the alerts of a pool that does not respond."""
        self._publish(usage, self._pools.on_unresponsive(usage, time.time_ns()))

    def on_removed(self, usage: PoolUsage) -> None:
        """Resolve the alerts of a pool that no VM uses any more."""
        self._publish(usage, self._pools.on_removed(usage, time.time_ns()))

    def _publish(self, usage: PoolUsage, records: Iterable[Record]) -> None:
        self._publish_alerts([AlertChange(record, self._pools.entry_of_pool(usage)) for record in records])
