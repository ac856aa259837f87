"""Prometheus alert rules about guests and their storage: rates over time, and forecasts. A row for each rule."""

from typing import Final

from deploy.prometheus.alert_rule import PrometheusRule

_ON_DEVICE: Final = 'and on (instance, job, vm_uuid, device) qemu_block_space_limited_by{limited_by=~"device|unknown"}'
_VMS_ON_POOL: Final = (
    'VMs:{{ range query (printf `count by (vm) (qemu_block_storage_pool{instance="%s",pool="%s"})` $labels.instance '
    "$labels.pool) }} {{ .Labels.vm }}{{ end }}"
)
_GROWTH: Final = "The guest writes more than usual, such as a backup, an update or a log that nothing rotates."

_SPACE = (
    PrometheusRule(
        alert="QemuDiskFullSoon",
        group="qemu-disks",
        expr=f"qemu_block_space_time_to_full_seconds < 3600\n  {_ON_DEVICE}",
        hold="2m",
        severity="critical",
        summary="{{ $labels.vm }}: the storage under {{ $labels.device }} is full in {{ $value | humanizeDuration }} at its current "
        "growth rate",
        cause=_GROWTH,
        action="Check what the guest writes: `qmp-agent top --vm NAME`. A backup or an update ends by itself; otherwise extend the disk "
        "as for [write_threshold](#write_threshold).",
    ),
    PrometheusRule(
        alert="QemuDiskFullWithinADay",
        group="qemu-disks",
        expr="predict_linear(qemu_block_space_free_bytes[6h], 86400) < 0\n"
        f"  and qemu_block_space_free_bytes < qemu_block_space_limit_bytes * 0.5\n  {_ON_DEVICE}",
        hold="30m",
        severity="warning",
        summary="{{ $labels.vm }}: the storage under {{ $labels.device }} is full within a day at the growth rate of the last six hours",
        cause=_GROWTH,
        action="As for [QemuDiskFullSoon](#qemudiskfullsoon), and there is time for it.",
    ),
    PrometheusRule(
        alert="QemuDiskFailedRequests",
        group="qemu-disks",
        expr="increase(qemu_block_failed_reads_total[5m]) > 0\n"
        "  or increase(qemu_block_failed_writes_total[5m]) > 0\n"
        "  or increase(qemu_block_failed_flushes_total[5m]) > 0\n"
        "  or increase(qemu_block_failed_unmaps_total[5m]) > 0",
        severity="warning",
        summary="{{ $labels.vm }}: {{ $value | humanize }} requests to {{ $labels.device }} failed in five minutes",
        cause="The host's storage failed requests, and QEMU reported the errors to the guest. With `werror=stop` or `rerror=stop`, QEMU "
        "pauses the guest instead, and the request is not counted.",
        action="Check the host's kernel log, multipath and the storage.",
    ),
    PrometheusRule(
        alert="QemuBackupOverdue",
        group="qemu-disks",
        expr="min by (instance, job, vm_uuid, vm, device, bitmap) (\n"
        "  resets(qemu_block_bitmap_dirty_bytes[7d]) == 0 and qemu_block_bitmap_dirty_bytes > 0\n"
        "    and qemu_block_bitmap_dirty_bytes offset 7d >= 0 and qemu_block_bitmap_recording == 1\n"
        ")",
        severity="warning",
        summary="{{ $labels.vm }}: the bitmap {{ $labels.bitmap }} of {{ $labels.device }} was not cleared for a week; no incremental "
        "backup has succeeded",
        cause="A backup clears its bitmap when it succeeds. The backup job was removed, hangs, or fails each time.",
        action="Check the backup tool. Remove a bitmap that no tool uses any longer (`block-dirty-bitmap-remove`). Prometheus has to keep "
        "eight days of samples for this rule.",
    ),
    PrometheusRule(
        alert="QemuPoolFullWithinADay",
        group="qemu-pools",
        expr="predict_linear(qemu_pool_free_bytes[6h], 86400) < 0\n  and qemu_pool_free_bytes < qemu_pool_size_bytes * 0.5",
        hold="30m",
        severity="warning",
        summary="{{ $labels.instance }}: {{ $labels.pool }} is full within a day at the growth rate of the last six hours",
        description=_VMS_ON_POOL,
        cause="The images on the pool, or other files on it, grow.",
        action="As for [pool_filling](#pool_filling), and there is time for it.",
    ),
    # libvirt's figures change only when libvirt refreshes the pool.
    PrometheusRule(
        alert="QemuPoolFiguresOld",
        group="qemu-pools",
        expr='qemu_pool_age_seconds{kind!="libvirt"} > 300',
        hold="5m",
        severity="warning",
        summary="{{ $labels.instance }}: {{ $labels.pool }}: its figures are {{ $value | humanizeDuration }} old",
        cause="The report of the host's thin pools and ZFS pools is no longer written.",
        action="Check `systemctl status qmp-agent-storage.timer qmp-agent-storage.service` and `journalctl -u qmp-agent-storage`.",
    ),
    PrometheusRule(
        alert="QemuGuestFilesystemFullWithinADay",
        group="qemu-guests",
        expr="predict_linear(qemu_guest_filesystem_available_bytes[6h], 86400) < 0\n"
        "  and qemu_guest_filesystem_available_bytes < qemu_guest_filesystem_size_bytes * 0.5",
        hold="30m",
        severity="warning",
        summary="{{ $labels.vm }}: the guest's file system {{ $labels.mountpoint }} is full within a day at the growth rate of the last "
        "six hours",
        cause=_GROWTH,
        action="Free space in the guest, or extend its disk and then the file system.",
    ),
)

_PERFORMANCE = (
    PrometheusRule(
        alert="QemuVcpuStarved",
        group="qemu-performance",
        expr="avg by (instance, job, vm_uuid, vm) (rate(qemu_vcpu_run_delay_seconds_total[5m])) > 0.1",
        hold="15m",
        severity="warning",
        summary="{{ $labels.vm }}: its vCPUs wait {{ $value | humanizePercentage }} of the time for a CPU of the host; the guest sees this "
        "as steal",
        cause="The host has too few CPUs for its VMs, another VM takes them, or a CPU quota (`cpu.max`, `vcpu_quota`) is too low.",
        action="Compare the VMs of the host: `qmp-agent top`. `qemu_cgroup_cpu_throttled_seconds_total` shows a quota. Move a VM away, "
        "or raise the quota.",
    ),
    PrometheusRule(
        alert="QemuVcpusSaturated",
        group="qemu-performance",
        expr="avg by (instance, job, vm_uuid, vm) (rate(qemu_vcpu_cpu_seconds_total[5m])) > 0.95",
        hold="1h",
        severity="warning",
        summary="{{ $labels.vm }}: all its vCPUs have been busy for an hour ({{ $value | humanizePercentage }})",
        cause="The guest computes as much as it can, or a program in it loops.",
        action="Check the guest's processes. Give the guest more vCPUs if the load is real.",
    ),
    PrometheusRule(
        alert="QemuIothreadSaturated",
        group="qemu-performance",
        expr="rate(qemu_iothread_cpu_seconds_total[5m]) > 0.9",
        hold="10m",
        severity="warning",
        summary="{{ $labels.vm }}: the iothread {{ $labels.iothread }} uses {{ $value | humanizePercentage }} of a CPU, so the disks on it "
        "are as fast as they can be",
        cause="One thread handles more requests than one CPU can: too many disks share it, or one disk is very busy.",
        action="Give the disks iothreads of their own, or several iothreads to one disk (`iothread-vq-mapping`, QEMU 9.0).",
    ),
    PrometheusRule(
        alert="QemuMainLoopSaturated",
        group="qemu-performance",
        expr="rate(qemu_process_main_loop_cpu_seconds_total[5m]) > 0.9",
        hold="10m",
        severity="warning",
        summary="{{ $labels.vm }}: QEMU's main loop uses {{ $value | humanizePercentage }} of a CPU, so devices answer late",
        cause="Disks or network devices without an iothread or vhost are handled by the main loop, or a client sends many commands.",
        action="Give disks an iothread, and network devices vhost. Find the client that holds the monitor: `qmp-agent doctor`.",
    ),
    PrometheusRule(
        alert="QemuCgroupMemoryStalled",
        group="qemu-performance",
        expr="rate(qemu_cgroup_pressure_memory_stalled_seconds_total[5m]) > 0.1",
        hold="5m",
        severity="warning",
        summary="{{ $labels.vm }}: all threads of its cgroup waited for memory {{ $value | humanizePercentage }} of the time",
        cause="The cgroup is at its memory limit (`memory.high`, `memory.max`), or the host swaps.",
        action="Compare `qemu_cgroup_memory_bytes` with `qemu_cgroup_memory_limit_bytes`. Raise the limit, or free memory of the host.",
    ),
    PrometheusRule(
        alert="QemuGuestSwapping",
        group="qemu-performance",
        expr="rate(qemu_guest_memory_swap_in_bytes_total[5m]) > 1e6",
        hold="15m",
        severity="warning",
        summary="{{ $labels.vm }}: the guest reads {{ $value | humanize1024 }}B/s from its swap",
        cause="The guest's programs need more memory than it has, or the balloon holds too much.",
        action="Deflate the balloon (`virsh setmem --live`), or give the guest more memory.",
    ),
    PrometheusRule(
        alert="QemuHostSwapsGuests",
        group="qemu-performance",
        expr="rate(qemu_host_swap_in_bytes_total[10m]) > 1e6\n"
        "  and on (instance, job) qemu_host_memory_commitment_ratio > 1",
        hold="15m",
        severity="warning",
        summary="{{ $labels.instance }}: the host reads {{ $value | humanize1024 }}B/s from swap, and its guests have more memory than "
        "it has",
        description="VMs with most swapped-out memory:{{ range query (printf "
        '`topk(5, qemu_process_swap_bytes{instance="%s"})` $labels.instance) }} {{ .Labels.vm }}{{ end }}',
        cause="The guests use the memory that was committed to them, so the host swaps it. Each access to such a page waits for a disk.",
        action="`qmp-agent top --view host` has the commitment and the VMs that wait. Move a VM away, inflate balloons, or add memory. "
        "KSM helps only while guests have equal pages.",
    ),
    PrometheusRule(
        alert="QemuMigrationNotConverging",
        group="qemu-performance",
        expr='qemu_migration_status{status="active"} == 1\n'
        "  and on (instance, vm_uuid) qemu_migration_ram_remaining_bytes > 0\n"
        "  unless on (instance, vm_uuid) qemu_migration_remaining_seconds",
        hold="5m",
        severity="warning",
        summary="{{ $labels.vm }}: the migration does not converge because the guest dirties memory as fast as QEMU sends it",
        cause="The network is too slow for the guest's rate of writes to its memory.",
        action="Enable auto-converge or postcopy in the manager, raise the bandwidth or the downtime limit, or cancel the migration. "
        "Compare `qemu_migration_ram_dirty_pages_per_second`, `qemu_migration_throughput_bytes_per_second` and "
        "`qemu_migration_cpu_throttle_ratio`.",
    ),
)

GUEST_RULES: Final = (*_SPACE, *_PERFORMANCE)
"""All rules about guests and their storage."""
