"""Alerts of storage pools that exceed a level or do not respond. One alert covers all VMs on the pool. Pure."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

from agent.alerts.pool_levels import (
    PoolAlertLevel,
    PoolPolicyLookup,
    bytes_until_level,
    is_highest_of_several_levels,
    is_pool_level_exceeded,
)
from agent.alerts.pool_usage import (
    MAX_ERROR_LENGTH,
    MAX_VM_NAMES,
    GrowingDisk,
    PoolRegistry,
    PoolUsage,
    growing_disks_to_json,
)
from agent.alerts.store import Alert, AlertStore
from agent.host.pools.base import Pool, PoolKind
from agent.model.record import Record, Severity, Vm, sanitize

POOL_ENTRY_PREFIX = "pools/"
"""Prefix of the name of a pool's persistent entry. The pool's key follows."""

MAX_EXCEEDED = 1000
"""Maximum number of exceeded levels of a pool that are restored after a restart of the agent."""

EntryNameAndValue = tuple[str, Any]

GrowersLookup = Callable[[PoolUsage], Sequence[GrowingDisk]]
"""Returns the disks on a pool that grow fastest."""

FILLING, UNRESPONSIVE = "pool_filling", "pool_unresponsive"

GUESTS_STAND_STILL = "guests stand still"
"""Level of the critical alert of an unresponsive pool. The critical alert fires only if a disk on the pool stalls."""

POOL_ALERT_TEXTS = {
    FILLING: "A pool exceeded an alert level. One alert covers all VMs on the pool.",
    UNRESPONSIVE: "A pool does not answer, or answers again.",
}
"""Text of each alert of pools, by the alert's name, for docs/reference/records.md."""

UNRESPONSIVE_HELP = (
    "The storage does not answer. Guests hang when they access it. "
    "The agent sends no command that accesses storage to the VMs on it."
)


class PoolAlerts:
    """Fires and resolves the alerts of all pools."""

    def __init__(
        self,
        host: str,
        store: AlertStore,
        registry: PoolRegistry,
        policy_lookup: PoolPolicyLookup,
        growers_lookup: GrowersLookup = lambda _usage: (),
    ) -> None:
        """Create an object that has no firing alert yet.

        Args:
            host: name of this host.
            store: stores the firing alerts.
            registry: the pools.
            policy_lookup: returns the configured policy of a pool.
            growers_lookup: returns the disks on a pool that grow fastest.
        """
        self._vm = Vm(host, "", "")
        self._store = store
        self._registry = registry
        self._policy_lookup = policy_lookup
        self._growers_lookup = growers_lookup
        self._stored_points: dict[str, int] = {}
        registry.on_new_pool = self.on_new_pool

    def set_policy(self, policy_lookup: PoolPolicyLookup) -> list[PoolUsage]:
        """Replace the alert policy of pools, and return all pools. The caller has to compare each pool with its new levels."""
        self._policy_lookup = policy_lookup
        usages = list(self._registry)
        for usage in usages:
            self.on_new_pool(usage)
        return usages

    def on_new_pool(self, usage: PoolUsage) -> None:
        """Set the pool's attribute `has_levels` from the config. A block device never has alert levels."""
        usage.has_levels = usage.pool.kind is not PoolKind.DEVICE and self._policy_lookup(usage).watches_space

    def on_reading(self, usage: PoolUsage, now_ns: int) -> Iterator[Record]:
        """Fire and resolve the alerts of a pool after a new reading."""
        yield from self.on_pool_answered(usage, now_ns)
        yield from self.update_level_alerts(usage, now_ns)

    def on_pool_answered(self, usage: PoolUsage, now_ns: int) -> Iterator[Record]:
        """Resolve the alerts of an unresponsive pool, because the pool has answered with a reading or with an error."""
        usage.has_stalled_disk = False
        unresponsive = [alert for alert in self._store.alerts_of_owner(usage.owner) if alert.name == UNRESPONSIVE]
        if unresponsive:
            yield from self._store.resolve(unresponsive, now_ns, "responsive", self._alert_data(usage, now_ns))
        yield from self._store.apply_overrides(self._store.alerts_of_owner(usage.owner), now_ns)

    def on_unresponsive(self, usage: PoolUsage, now_ns: int) -> Iterator[Record]:
        """Fire the alert of an unresponsive pool, and a critical alert if the I/O of a guest on that pool stalls."""
        data = {"help": UNRESPONSIVE_HELP} | self._alert_data(usage, now_ns)
        data |= {"error": sanitize(usage.error, MAX_ERROR_LENGTH)} if usage.error else {}
        yield from self._store.fire(self._build_alert(UNRESPONSIVE, usage, "", Severity.ERROR, now_ns, data))
        if usage.has_stalled_disk:
            alert = self._build_alert(UNRESPONSIVE, usage, GUESTS_STAND_STILL, Severity.CRITICAL, now_ns, data)
            yield from self._store.fire(alert)

    def on_removed(self, usage: PoolUsage, now_ns: int) -> Iterator[Record]:
        """Resolve all alerts of a pool that no VM has used for some minutes."""
        yield from self._store.resolve(self._store.alerts_of_owner(usage.owner), now_ns, "pool_unused")

    def update_level_alerts(self, usage: PoolUsage, now_ns: int) -> Iterator[Record]:
        """Compare the last reading of a pool with the pool's levels.

        Fire the alerts of exceeded levels. Resolve the alerts of levels that are no longer exceeded or no longer configured.
        """
        policy = self._policy_lookup(usage)
        for level in policy.levels if usage.pool.kind is not PoolKind.DEVICE else ():
            firing = level.text in usage.exceeded
            exceeded = is_pool_level_exceeded(level, usage, policy.hysteresis, firing=firing)
            if exceeded is True:
                usage.exceeded |= {level.text}
                severity = Severity.CRITICAL if is_highest_of_several_levels(level, policy, usage) else Severity.WARNING
                data = self._level_data(usage, level, now_ns)
                yield from self._store.fire(self._build_alert(FILLING, usage, level.text, severity, now_ns, data))
            elif exceeded is False and firing:
                usage.exceeded -= {level.text}
                yield from self._resolve_level(usage, level.text, now_ns, "space")
        bytes_to_levels = [
            bytes_to_level
            for level in policy.levels
            if (bytes_to_level := bytes_until_level(level, usage)) is not None and bytes_to_level >= 0
        ]
        usage.bytes_until_level = int(min(bytes_to_levels)) if bytes_to_levels else None
        for text in sorted(usage.exceeded - {level.text for level in policy.levels}):
            usage.exceeded -= {text}
            yield from self._resolve_level(usage, text, now_ns, "level_gone")

    def _resolve_level(self, usage: PoolUsage, text: str, now_ns: int, reason: str) -> Iterator[Record]:
        alert = self._store.find(usage.owner, FILLING, usage.name, text)
        yield from self._store.resolve(filter(None, [alert]), now_ns, reason, self._alert_data(usage, now_ns))

    def _build_alert(
        self, name: str, usage: PoolUsage, level: str, severity: Severity, now_ns: int, data: Mapping[str, Any]
    ) -> Alert:
        return Alert(name, self._vm, usage.name, level, severity, now_ns, data, owner=usage.owner)

    def _level_data(self, usage: PoolUsage, level: PoolAlertLevel, now_ns: int) -> dict[str, Any]:
        return {"measure": level.measure.value} | self._alert_data(usage, now_ns)

    def _alert_data(self, usage: PoolUsage, now_ns: int) -> dict[str, Any]:
        """Return the data of a pool's alert record: the pool, its sizes and growth, and the VMs on the pool."""
        identity = {"pool": usage.name, "kind": usage.pool.kind.value} | (
            {"type": usage.pool.type} if usage.pool.type else {}
        )
        vms = {"vms": len(usage.vm_names), "vm_names": list(usage.vm_names[:MAX_VM_NAMES])}
        usage.fastest_growing_disks = self._growers_lookup(usage)
        growers = {"growers": growing_disks_to_json(usage.fastest_growing_disks)} if usage.fastest_growing_disks else {}
        return {**identity, **usage.record_values(now_ns / 1e9), **vms, **growers}

    def seconds_until_level(self, usage: PoolUsage) -> float | None:
        """Return the seconds until the pool exceeds its next level of space, at the growth rate between the last two readings.

        Returns:
            None if the pool does not grow, or if there is no next level.
        """
        bytes_until_level, rate = usage.bytes_until_level, usage.last_growth_rate
        return bytes_until_level / rate if bytes_until_level is not None and rate > 0 else None

    # Persistence.

    def entry_of_pool(self, usage: PoolUsage) -> EntryNameAndValue:
        """Return the name and the value of a pool's persistent entry, which the next run of the agent restores."""
        pool = usage.pool
        return POOL_ENTRY_PREFIX + pool.key, {
            "name": usage.name,
            "pool": [pool.kind.value, pool.name, pool.type, pool.path],
            "exceeded": sorted(usage.exceeded),
            "firing": self._store.state_to_store(usage.owner),
            "growth": usage.growth.state_to_store(),
        }

    def entries_to_store(self) -> list[EntryNameAndValue]:
        """Return the entries of pools with a new point in their growth history, and entries with the value None for removed pools."""
        usages = [usage for usage in self._registry if usage.pool.kind is not PoolKind.DEVICE]
        changed_pools = [
            self.entry_of_pool(usage)
            for usage in usages
            if usage.growth.added_point_count != self._stored_points.get(usage.pool.key, 0)
        ]
        removed_pool_keys = self._stored_points.keys() - {usage.pool.key for usage in usages}
        self._stored_points = {
            usage.pool.key: usage.growth.added_point_count for usage in usages if usage.growth.added_point_count
        }
        return [*changed_pools, *((POOL_ENTRY_PREFIX + key, None) for key in removed_pool_keys)]

    def restore(self, entries: Mapping[str, object], now: float) -> None:
        """Restore the pools and their alerts from the entries of an earlier run. Ignore invalid entries.

        Args:
            entries: value of each entry, by its name.
            now: the current time in seconds since the epoch.
        """
        for name, value in entries.items():
            if name.startswith(POOL_ENTRY_PREFIX) and isinstance(value, dict):
                self._restore_pool(name.removeprefix(POOL_ENTRY_PREFIX), value, now)

    def _restore_pool(self, key: str, value: Mapping[str, Any], now: float) -> None:
        match value.get("pool"), value.get("name"):
            case [[str(kind), str(pool_name), str(pool_type), str(path)], str(name)] if kind in list(PoolKind):
                usage = self._registry.add(Pool(key, PoolKind(kind), pool_name, pool_type, path), name)
            case _:
                return
        usage.unused_since = now
        exceeded = value.get("exceeded")
        texts: Iterable[object] = exceeded[:MAX_EXCEEDED] if isinstance(exceeded, list) else ()
        usage.exceeded = frozenset(text for text in texts if isinstance(text, str))
        usage.growth.restore(value.get("growth"), now)
        self._store.restore(self._vm, usage.owner, value.get("firing"))
        self._stored_points[key] = usage.growth.added_point_count
        self.on_new_pool(usage)
