"""Usual causes and remedies of the alerts whose rules are not in `agent.alerts.rules`. Pure."""

from collections.abc import Mapping
from typing import Final

from agent.alerts.rules.rule_types import Runbook

_MANAGER_HANGS: Final = "The manager of the VM hangs, or has lost track of the VM, so QEMU is not ended."
_STATE_STORAGE: Final = "The guest has much memory, and the storage of the saved state is slow or hangs."

RUNBOOKS: Final[Mapping[str, Runbook]] = {
    "write_threshold": Runbook(
        "A thin disk grows, and the storage under it is nearly full. When a write finds no space, QEMU pauses the guest "
        "(`werror=enospc`, the default).",
        "Extend the volume (`lvextend`, the storage's own tool). The agent sees a larger device at its next resync, within "
        "`intervals.resync`. Deleting files in the guest frees space only if its disk discards.",
    ),
    "pool_filling": Runbook(
        "The storage that images share fills up, or will soon be full at its current growth. When a write finds no space, QEMU pauses "
        "each guest that writes to the pool. `level` shows what is short: space, inodes, or the metadata of an LVM thin pool.",
        "The record names the VMs and the disks that grow fastest (`growers`). Delete or move images, old snapshots and backups, or "
        "extend the file system, the thin pool or the ZFS pool. For metadata: `lvextend --poolmetadatasize +1G VG/POOL` now, because "
        "a pool without metadata becomes read-only. For inodes: `du --inodes -xd 2 MOUNTPOINT | sort -n`. "
        "docs/explanation/storage.md describes the figures.",
    ),
    "pool_unresponsive": Runbook(
        "The server of a network file system is gone, the paths of a LUN failed, or a pool is suspended.",
        "Check the server, `multipath -ll`, `dmesg` and `zpool status`. Meanwhile the agent sends these VMs no command that waits for "
        "storage, so the figures of their layers are old. With the level `guests stand still`, a disk on the pool has completed no "
        "request for the limit of `io_stalled`, which then does not fire. Both alerts are resolved when the storage answers.",
    ),
    "disk_full": Runbook(
        "A write found no space on the storage under the disk.",
        "Extend the storage, or delete something on it. Then resume the guest with its manager (`virsh resume`, `qm resume`, QMP "
        "`cont`): QEMU repeats the request, and no data is lost. The agent never resumes a guest.",
    ),
    "io_error_stop": Runbook(
        "A request failed, and the disk's `werror` or `rerror` is `stop`.",
        "Check the host's kernel log, multipath and the storage. Repair it, then resume the guest with its manager: QEMU repeats the "
        "request, and no data is lost.",
    ),
    "guest_panicked": Runbook(
        "The guest's kernel panicked and reported it through pvpanic. The domain's `on_crash` decides what happens next.",
        "With `preserve`, take a dump (`virsh dump --memory-only`), then reset the guest. The alert is resolved when the guest runs "
        "again or when the VM ends. A reset alone does not start a guest that is stopped.",
    ),
    "guest_crashed": Runbook(
        "The guest's kernel panicked, and its crash kernel (kdump) takes a dump.",
        "Wait for the dump and the reboot, then read the dump in the guest (`/var/crash`).",
    ),
    "image_corrupted": Runbook(
        "QEMU found invalid metadata in a qcow2 image and accepts no more writes to it. Two QEMUs wrote to one image, or the storage "
        "lost writes.",
        "Shut the guest down, copy the image, and run `qemu-img check -r leaks`. Use `-r all` only on the copy. While QEMU runs with "
        "an image that it found corrupt itself, it refuses `query-named-block-nodes` for all disks of the VM (7.2 to 11.1), so the "
        "metrics of layers are absent.",
    ),
    "internal_error": Runbook(
        "KVM reported an error, or an instruction could not be emulated.",
        "QEMU's log (`/var/log/libvirt/qemu/NAME.log`) and the host's kernel log have the cause. Resuming the guest rarely helps: take "
        "a dump (`virsh dump --memory-only`), then reset and resume it.",
    ),
    "watchdog_stop": Runbook(
        "The guest hangs, and the `action` of its watchdog is `pause`.",
        "Take a dump if you need one, then reset and resume the guest.",
    ),
    "watchdog": Runbook(
        "The guest hung, and its watchdog expired. The record of the event WATCHDOG has QEMU's `action`.",
        "Read the guest's log from before the reset.",
    ),
    "reset_stopped": Runbook(
        "The guest was reset while it was stopped. QEMU does not run a stopped guest after a reset.",
        "Repair what stopped it, then resume it with its manager.",
    ),
    "shutdown_stuck": Runbook(_MANAGER_HANGS, "Check the manager, then destroy the domain."),
    "guest_suspended": Runbook(
        "The guest suspended to RAM and has not woken up.",
        "Wake it up (`virsh dompmwakeup`), or disable suspend in the guest.",
    ),
    "save_stuck": Runbook(_STATE_STORAGE, "Check the storage that holds the state (`savevm`, `virsh save`)."),
    "restore_stuck": Runbook(_STATE_STORAGE, "Check the storage that holds the state (`loadvm`, `virsh restore`)."),
    "postcopy_paused": Runbook(
        "The connection of a postcopy migration broke. The guest waits for memory that only the source has, so neither host alone can "
        "run it.",
        "Repair the network and recover the migration with the manager (QMP `migrate-recover`, then `migrate` with `resume`). If the "
        "source is gone, the guest is lost: start it again from its disks.",
    ),
    "postcopy_recovery_failed": Runbook(
        "An attempt to recover a paused postcopy migration failed, or the migration failed for good while it was paused.",
        "With the `status` `postcopy-paused`, repair the network and recover the migration again. With `failed` or `cancelled`, "
        "neither host has all of the guest's memory: start the guest again from its disks.",
    ),
    "job_failed": Runbook(
        "A backup, mirror, commit or stream failed. `error` has QEMU's reason.",
        "A job that found no space needs a larger target. Start the job again with the manager.",
    ),
    "uuid_clash": Runbook(
        "One VM is a clone whose UUID was not changed. Metrics and records of both share labels and keys, and managers may confuse them.",
        "Change the clone's UUID. `monitors` names the VMs.",
    ),
    "memory_failure": Runbook(
        "The host's memory is faulty.", "Check the host's kernel log (`mcelog`, `rasdaemon`), and move the VMs away."
    ),
    "quorum_failure": Runbook(
        "A disk of the quorum failed, or returned different data than the other disks.",
        "The event's `reference` names the quorum. Replace the failed disk.",
    ),
    "guest_agent_lost": Runbook(
        "The service in the guest has stopped or crashed, or the guest has booted another system.",
        "Start it: `systemctl start qemu-guest-agent`. Until then, managers cannot freeze the guest's file systems for a snapshot or "
        "shut the guest down cleanly. docs/reference/guest-agent.md describes the states.",
    ),
    "guest_filesystem_space": Runbook(
        "A file system in the guest is nearly full. The guest does not stop, but its programs fail.",
        "Free space in the guest, or extend its disk and then the file system.",
    ),
    "guest_frozen": Runbook(
        "A manager froze the guest's file systems, as for a snapshot or a backup, and did not thaw them.",
        "Look for a backup job that hangs or has failed. Thaw them by the manager (`virsh domfsthaw`), or reset the guest.",
    ),
    "guest_clock_offset": Runbook(
        "The guest's time synchronization does not work, or the guest was paused for a long time or restored from a file.",
        "Check chrony, systemd-timesyncd or Windows Time in the guest. The service may have to step the clock.",
    ),
}
"""Instructions by the alert's name."""
