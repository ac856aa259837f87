"""A fake host with any number of VMs, for the page without QEMU. Its values are made up, but the same at each run."""

import itertools
import random
from dataclasses import replace
from typing import Any, Final

from agent.exposition.snapshot import Snapshot
from agent.model.family import Family, Sample
from agent.model.metrics.block import BLOCK, BLOCK_SPACE
from agent.model.metrics.guest import GUEST_AGENT_SESSION, GUEST_FILESYSTEM, GUEST_OS
from agent.model.metrics.identity import IDENTITY
from agent.model.metrics.jobs import JOB
from agent.model.metrics.memory import GUEST_MEMORY
from agent.model.metrics.migration import MIGRATION
from agent.model.metrics.runstate import RUNSTATE
from agent.model.metrics.storage_pool import POOL
from agent.model.metrics.vm_process_and_interfaces import NET, PROCESS, VCPU
from agent.model.record import Record, RecordEncoder, Severity, Vm
from agent.monitors import Monitor
from agent.session.identity_and_features import QemuBuild
from agent.session.shared_types import MonitorState, MonitorStatus
from tests.lab.endpoint import FakeView
from tests.lab.snapshots import OPEN

SECOND: Final = 1_000_000_000
GIB: Final = 1 << 30
POLL_SECONDS: Final = 10
KINDS: Final = ("web", "db", "build", "cache", "mail", "vdi", "k8s-node", "ci-runner")
POOL_NAMES: Final = ("/var/lib/libvirt/images", "pve/data", "tank/vm", "/srv/nfs-gold")


class FakeVm:
    """One VM, whose counters grow at each poll.

    Args:
        number: the VM's position on the host; the first VMs have problems.
        since: time of the VM's last change of state, in seconds since the epoch.
        healthy: whether no VM has problems.
    """

    def __init__(self, number: int, since: float, *, healthy: bool = False) -> None:
        kind = KINDS[number % len(KINDS)]
        uuid = f"{number:08x}-1111-4111-8111-111111111111"
        self.number = number
        self.since = since
        name = f"{kind}-{number // len(KINDS) + 1}"
        self.vm = Vm("hv7", uuid, name, f"/run/libvirt/qemu/{name}.qmp")
        self.random = random.Random(number)
        self.healthy = healthy
        self.trouble = "" if healthy else {3: "stalled", 5: "degraded", 8: "io-error", 12: "paused"}.get(number, "")
        self.load = min(0.95, self.random.paretovariate(3) - 0.95)
        self.vcpus = self.random.choice((1, 2, 2, 4, 4, 8, 16))
        self.memory = self.random.choice((2, 4, 8, 16, 32)) * GIB
        self.counters: dict[tuple[str, str, str], float] = {}
        self.fill = self.random.uniform(0.1, 0.8) if number % 40 != 9 else 0.93

    def status(self) -> MonitorStatus:
        """Return the state of the VM's monitor."""
        monitor = Monitor(self.vm.monitor, (self.vm.monitor,), OPEN)
        state = MonitorState.STALLED if self.trouble == "stalled" else MonitorState.UP
        reason = "no reply to query-blockstats for 42 s" if self.trouble == "stalled" else ""
        degraded = (("nodes", "reply is not an object"),) if self.trouble == "degraded" else ()
        since_ns = int(self.since * SECOND)
        return MonitorStatus(monitor, state, reason, self.vm, QemuBuild("9.2.1", "Debian"), since_ns, degraded)

    def count(self, family: str, subject: str, name: str, rate: float, seconds: float) -> float:
        """Return a counter, increased by a rate with noise."""
        key = family, subject, name
        value = self.counters[key] = self.counters.get(key, 0.0) + rate * seconds * self.random.uniform(0.6, 1.4)
        return value

    def disks(self, seconds: float) -> list[Sample]:
        """Return the counters and the space of two disks."""
        samples = []
        busy = 0.0 if self.trouble in ("paused", "io-error") else self.load
        for position, disk in enumerate(("virtio-disk0", "virtio-disk1")):
            share = busy / (1 + 3 * position)
            values: dict[str, Any] = {}
            for kind, rate in (("read", 8e6 * share), ("write", 2e7 * share)):
                values[f"{kind}_bytes_total"] = int(self.count("block", disk, f"{kind}_bytes", rate, seconds))
                values[f"{kind}s_total"] = int(self.count("block", disk, f"{kind}s", rate / 16384, seconds))
                delay = 0.08 if self.number % 23 == 0 and not self.healthy else 0.0004
                values[f"{kind}_seconds_total"] = values[f"{kind}s_total"] * delay
            samples.append(Sample(BLOCK, (disk,), values))
            limit = (40 + 80 * position) * GIB
            self.fill = min(0.97, self.fill + share * seconds * 1e-6)
            used = int(limit * (self.fill if position == 0 else self.fill / 2))
            space = {"used_bytes": used, "limit_bytes": limit, "free_bytes": limit - used, "limited_by": "virtual_size"}
            if self.number % 40 == 9 and position == 0:
                space |= {"growth_bytes_per_second": 2e5, "time_to_full_seconds": (limit - used) / 2e5}
            samples.append(Sample(BLOCK_SPACE, (disk,), space))
        return samples

    def samples(self, seconds: float) -> list[Sample]:
        """Return the samples of a poll, these seconds after the last one."""
        status = self.trouble if self.trouble in ("paused", "io-error") else "running"
        running = status == "running" and self.trouble != "stalled"
        busy = self.load if running else 0.0
        steal = 0.3 if self.number % 31 == 4 and not self.healthy else 0.01
        state = {"status": status, "running": running, "since_timestamp_seconds": self.since}
        result = [Sample(RUNSTATE, (), state), *self.disks(seconds)]
        for vcpu in range(self.vcpus):
            spent = self.count("vcpu", str(vcpu), "cpu", busy, seconds)
            waited = self.count("vcpu", str(vcpu), "delay", busy * steal, seconds)
            values = {"cpu_seconds_total": spent, "run_delay_seconds_total": waited}
            result.append(Sample(VCPU, (str(vcpu),), values))
        used = self.memory * (0.3 + 0.6 * self.load) * self.random.uniform(0.98, 1.02)
        guest = {"total_bytes": self.memory, "available_bytes": int(self.memory - used)}
        net = {
            "receive_bytes_total": int(self.count("net", "", "rx", 3e6 * busy, seconds)),
            "transmit_bytes_total": int(self.count("net", "", "tx", 9e6 * busy, seconds)),
        }
        result += [
            Sample(GUEST_MEMORY, (), guest),
            Sample(PROCESS, (), {"resident_bytes": int(used * 1.05), "pid": 4000 + self.number}),
            Sample(NET, (f"vnet{self.number}",), net),
            Sample(IDENTITY, (), {"machine": "q35", "labels": {"owner": KINDS[self.number % 3], "tier": "gold"}}),
        ]
        if self.number % 3 == 0:
            result += self.guest()
        return result + self.activity()

    def guest(self) -> list[Sample]:
        """Return what a guest agent reports."""
        size = 38 * GIB
        used = int(size * min(0.98, self.fill + 0.05))
        return [
            Sample(GUEST_AGENT_SESSION, (), {"state": "up"}),
            Sample(GUEST_OS, (), {"hostname": self.vm.name, "name": "Debian GNU/Linux 12", "kernel": "6.1.0-18"}),
            Sample(GUEST_FILESYSTEM, ("/", "vda1", "ext4"), {"size_bytes": size, "used_bytes": used}),
        ]

    def activity(self) -> list[Sample]:
        """Return a migration or a job, for a few VMs."""
        if self.number % 50 == 7:
            ram = {"status": "active", "ram_bytes": self.memory, "ram_remaining_bytes": self.memory // 3}
            return [Sample(MIGRATION, (), ram | {"throughput_bytes_per_second": 1e9, "remaining_seconds": 3.0})]
        if self.number % 50 == 11:
            values = {"status": "running", "progress_ratio": 0.4, "remaining_seconds": 60.0}
            return [Sample(JOB, ("drive-backup0", "backup"), values)]
        return []


class FakeHost(FakeView):
    """The agent of a host with many VMs, as the endpoint sees it.

    Args:
        count: the number of VMs.
        start: the time of the first poll, seconds since the epoch.
        healthy: whether no VM is in trouble and no alert fires.
    """

    def __init__(self, count: int, start: float, *, healthy: bool = False) -> None:
        super().__init__()
        self.snapshot = Snapshot()
        self.start = self.time = start
        self.vms = [FakeVm(number, start, healthy=healthy) for number in range(count)]
        self.healthy = healthy
        self._encode = RecordEncoder()
        self._turn = itertools.cycle(range(POLL_SECONDS))
        for fake in self.vms:
            self.snapshot.update_monitor_status(fake.status())
        for second in (0, 1):
            for fake in self.vms:
                self._poll(fake, start + (second - 1) * POLL_SECONDS)
        self._update_pools()

    def step(self) -> None:
        """Advance by a second, in which a tenth of the VMs is polled."""
        self.time += 1
        turn = next(self._turn)
        for fake in self.vms[turn::POLL_SECONDS]:
            self._poll(fake, self.time)
        if turn == 0:
            self._update_pools()

    def leave(self, fake: FakeVm) -> None:
        """Detach a VM."""
        self.snapshot.update_monitor_status(replace(fake.status(), state=MonitorState.GONE))

    def _poll(self, fake: FakeVm, at: float) -> None:
        samples = fake.samples(POLL_SECONDS)
        families: dict[str, Family] = {sample.family.name: sample.family for sample in samples}
        self.snapshot.replace_samples(fake.vm, tuple(families.values()), samples, int(at * SECOND))

    def _update_pools(self) -> None:
        for position, name in enumerate(POOL_NAMES[: 1 + len(self.vms) // 20]):
            size = (4 + 4 * position) << 40
            used = int(size * (0.5, 0.96, 0.3, 0.87)[position]) if not self.healthy else size // 2
            used += int(3e5 * position * (self.time - self.start))
            users = [fake.vm.name for fake in self.vms[position::4]]
            values = {
                "type": ("xfs", "", "zfs", "nfs4")[position],
                "responsive": True,
                "size_bytes": size,
                "used_bytes": used,
                "free_bytes": size - used,
                "commitment_ratio": 1.4,
                "growth_bytes_per_second": 3e5 * position,
                "vms": len(users),
                "vm_names": users[:8],
            }
            if position:
                values["time_to_full_seconds"] = (size - used) / (3e5 * position)
            kind = ("filesystem", "lvm_thin", "zfs", "filesystem")[position]
            self.snapshot.replace_host_sample(Sample(POOL, (name, kind), values), self.time)

    def agent_health(self) -> dict[str, Any]:
        """Return the state of an agent that delivers to Kafka."""
        queues = [
            {"name": name, "records": 0, "memory_bytes": 0, "disk_bytes": 0, "oldest_record_age_seconds": 0.0}
            for name in ("alerts", "events", "samples")
        ]
        return {
            "host": "hv7",
            "version": "0.1.0",
            "cpus": 256,
            "memory_bytes": 8192 * GIB,
            "unready_reasons": [],
            "warnings": [],
            "sink": {"name": "kafka", "error": None},
            "delivered": round(self.time) % 1_000_000,
            "reconnects": 0,
            "queues": queues,
            "dropped": [],
            "events_dropped": {},
            "journal": {"error": None, "quarantined": 0},
        }

    def firing_alerts(self) -> list[dict[str, Any]]:
        """Return the alerts of the VMs with problems, and of a full pool."""
        if self.healthy:
            return []
        alerts = []
        for fake in self.vms:
            common = {"uuid": fake.vm.uuid, "vm": fake.vm.name, "since": self.start - 3600.0 + fake.number}
            if fake.trouble == "io-error":
                what = {
                    "alert": "disk_full",
                    "subject": "virtio-disk0",
                    "level": "",
                    "severity": "critical",
                }
                alerts.append(common | what | {"fingerprint": f"io{fake.number}"})
            elif fake.number % 40 == 9:
                what = {"alert": "write_threshold", "subject": "virtio-disk0", "level": "90%", "severity": "warning"}
                alerts.append(common | what | {"fingerprint": f"wt{fake.number}", "free_bytes": 2 * GIB})
        if len(self.vms) >= 20:
            pool = {"alert": "pool_filling", "uuid": "", "vm": "", "subject": "pve/data", "level": "95%"}
            more = {
                "severity": "critical",
                "since": self.start - 3000.0,
                "fingerprint": "pool",
                "free_bytes": 300 * GIB,
            }
            alerts.append(pool | more | {"vms": len(self.vms) // 4, "vm_names": ["db-1", "db-2"]})
        return sorted(alerts, key=lambda alert: (alert["severity"] != "critical", alert["since"]))

    def disk_alert_levels_in_bytes(self, vm: Vm, device: str, /) -> list[tuple[str, int]]:
        """Return levels in percent of the disk."""
        limit = (40 if device == "virtio-disk0" else 120) * GIB
        return [(f"{share}%", limit * share // 100) for share in (80, 90, 95)] if vm.uuid else []

    def publish_events(self) -> None:
        """Publish a few records of VMs, such as of a pause."""
        for fake, name, severity in zip(
            self.vms, ("STOP", "RESUME", "BLOCK_IO_ERROR"), (Severity.INFO, Severity.INFO, Severity.ERROR), strict=False
        ):
            data = {"event": name, "category": "state", "qemu": {}}
            record = Record(f"qemu.event.{name.lower()}", fake.vm, data, int(self.time * SECOND), severity=severity)
            self.broadcaster.publish(self._encode(record))
