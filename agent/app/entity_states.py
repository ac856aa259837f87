"""Builds the records of the state topic from samples, alerts and pools. Pure."""

from collections.abc import Iterable, Mapping
from typing import Any

from agent.alerts.pool_usage import PoolUsage
from agent.alerts.store import Alert
from agent.app.entity_state_table import EntityState
from agent.exposition.snapshot import VmView
from agent.model.family import Family, FieldValues
from agent.model.metrics.block import BLOCK_SPACE
from agent.model.metrics.block_layers import BLOCK_LAYER
from agent.model.metrics.guest import GUEST_AGENT, GUEST_AGENT_SESSION
from agent.model.metrics.identity import IDENTITY
from agent.model.metrics.runstate import RUNSTATE
from agent.model.metrics.storage_pool import BLOCK_STORAGE
from agent.model.record import Record, Vm, sanitize
from agent.model.state_topic_records import ALERT_STATE, HOST_STATE, VM_STATE, StateRecordEntity

STATE_FAMILIES = frozenset({IDENTITY, BLOCK_LAYER, BLOCK_STORAGE, GUEST_AGENT, GUEST_AGENT_SESSION, RUNSTATE})
"""Families whose samples can change the state of a VM. The state has no usage of disks, because the usage changes at each poll."""

MAX_STATE_DISKS = 256
"""Maximum number of disks in the state of a VM, because a record has a maximum size."""

MAX_STATE_POOLS = 256
"""Maximum number of pools in the state of the host."""

_COPIED_FIELDS: tuple[tuple[Family, Mapping[str, str]], ...] = (
    (IDENTITY, {"pid": "pid", "machine": "machine", "accelerator": "accelerator", "labels": "labels"}),
    (
        RUNSTATE,
        {"run_state": "status", "running": "running", "run_state_since_timestamp_seconds": "since_timestamp_seconds"},
    ),
    (GUEST_AGENT, {"guest_agent_connected": "connected"}),
    (GUEST_AGENT_SESSION, {"guest_agent_state": "state"}),
)
"""Fields of a VM's state that are copied from samples: for each family, the name of the field in the state and in the sample."""


def vm_state_key_path(uuid: str) -> str:
    """Return `vms/UUID`, which is part of the key of a VM's records in the state topic."""
    return f"vms/{uuid}"


def alert_state_key_path(fingerprint: str) -> str:
    """Return `alerts/FINGERPRINT`, which is part of the key of an alert's records in the state topic."""
    return f"alerts/{fingerprint}"


def vm_state(vm: Vm, view: VmView, last_migration: Mapping[str, Any] | None) -> EntityState:
    """Return the state of an attached VM.

    Args:
        vm: the VM.
        view: the latest polls of the VM.
        last_migration: fields of the last migration of the VM; None if the agent observed none.
    """
    data: dict[str, Any] = {
        "monitor": sanitize(view.status.monitor.name),
        "monitor_state": view.status.state.value,
    }
    if view.status.build is not None:
        data["qemu_version"] = view.status.build.version
    for family, names in _COPIED_FIELDS:
        values = _samples_by_labels(view, family).get((), {})
        data |= {name: values[field] for name, field in names.items() if field in values}
    if disks := _disk_states(view):
        data["disks"] = disks[:MAX_STATE_DISKS]
    if last_migration:
        data["last_migration"] = dict(last_migration)
    return EntityState(
        StateRecordEntity(vm.host, vm.uuid, vm.name, path=vm_state_key_path(vm.uuid)), f"qemu.{VM_STATE.name}", data
    )


def alert_state_from_record(record: Record) -> EntityState:
    """Return the state of a firing alert, built from the alert's record."""
    vm = record.vm
    entity = StateRecordEntity(vm.host, vm.uuid, vm.name, path=alert_state_key_path(record.data["fingerprint"]))
    return EntityState(entity, f"qemu.{ALERT_STATE.name}", dict(record.data), record.subject, record.severity)


def alert_state(alert: Alert) -> EntityState:
    """Return the state of a firing alert from the alert store."""
    return alert_state_from_record(alert.to_record("firing", alert.since_ns, {}))


def host_state(host: str, run_fields: Mapping[str, Any], pools: Iterable[PoolUsage], state: str) -> EntityState:
    """Return the state of the host.

    Args:
        host: name of the host.
        run_fields: the fields that describe this run of the agent.
        pools: the storage pools that contain images of VMs.
        state: `running` or `stopped`.
    """
    described = [
        {
            "pool": usage.name,
            "kind": usage.pool.kind.value,
            "type": usage.pool.type,
            "responsive": not usage.unresponsive_since,
        }
        for usage in pools
    ]
    described.sort(key=lambda pool: (str(pool["pool"]), str(pool["kind"])))
    data = {"state": state, **run_fields, "pools": described[:MAX_STATE_POOLS]}
    return EntityState(StateRecordEntity(host, "", ""), f"qemu.{HOST_STATE.name}", data)


def migration_fields(record: Record) -> dict[str, Any]:
    """Return the fields that describe a migration in the state of a VM, given the record that reports the end of the migration."""
    names = ("outcome", "role", "elapsed_seconds", "downtime_seconds")
    fields = {name: record.data[name] for name in names if name in record.data}
    return fields | {"ended_timestamp_seconds": record.time_ns / 1e9}


def _samples_by_labels(view: VmView, family: Family) -> Mapping[tuple[str, ...], FieldValues]:
    polls = view.polls.get(family.name)
    return polls.current if polls is not None else {}


def _disk_states(view: VmView) -> list[dict[str, Any]]:
    layers, places, spaces = (_samples_by_labels(view, family) for family in (BLOCK_LAYER, BLOCK_STORAGE, BLOCK_SPACE))
    disks = []
    for device in sorted({labels[0] for labels in layers}):
        image, storage = layers.get((device, "format"), {}), layers.get((device, "storage"), {})
        place, space = places.get((device, "storage"), {}), spaces.get((device,), {})
        disk: dict[str, Any] = {"device": device}
        disk |= {name: image[name] for name in ("driver", "size_bytes", "read_only") if name in image}
        path = storage.get("path", image.get("path"))
        disk |= {"path": path} if path is not None else {}
        disk |= {"limited_by": space["limited_by"]} if "limited_by" in space else {}
        # Leave out the limit of a pool, because each write to the pool changes the limit.
        if space.get("limited_by") != "pool" and "limit_bytes" in space:
            disk["limit_bytes"] = space["limit_bytes"]
        disk |= {name: place[field] for name, field in (("pool", "pool"), ("pool_kind", "kind")) if field in place}
        disks.append(disk)
    return disks
