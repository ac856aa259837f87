"""The alerts of tables and of the operator on a real QEMU: jobs, snapshots, bitmaps, migrations, network backends and reset loops."""

import asyncio
import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import pytest
import yaml

from agent.cli.demo.guest import Guest, GuestKind, GuestOptions
from tests.lab.fixtures import StartPrometheus
from tests.lab.machine import free_port
from tests.lab.thin_guests import MIB, AlertWatcher, thin_guest
from tests.lab.waiting import until

RESETTING: Final = "b0fee664f4"
"""Code that resets the machine by the keyboard controller: mov al, 0xfe; out 0x64, al; hlt."""
BUSY: Final = "ebfe"
"""Code that uses all of a vCPU: jmp to itself."""
RULES: Final = yaml.safe_load((Path(__file__).parents[3] / "deploy/prometheus/alerts.yml").read_text())


def boot_options(folder: Path, code: str) -> GuestOptions:
    """Return the options of a guest whose boot sector has this code, in hexadecimal digits."""
    sector = bytes.fromhex(code).ljust(510, b"\0") + b"\x55\xaa"
    (folder / "code.img").write_bytes(sector.ljust(1 << 20, b"\0"))
    node = f"file,node-name=code,read-only=on,filename={folder}/code.img"
    disk = ["-blockdev", node, "-device", "virtio-blk-pci,drive=code,bootindex=0"]
    return GuestOptions(kind=GuestKind.WRITER, extra=disk)


@contextlib.contextmanager
def cpu_quota(pid: int, share: float) -> Iterator[None]:
    """Limit a process to a share of one CPU while the `with` block runs. Skip the test if that is not possible here."""
    legacy = Path("/sys/fs/cgroup/cpu")
    group = (legacy if legacy.is_dir() else legacy.parent) / f"qmp-agent-test-{pid}"
    period = 20_000
    quota = round(share * period)
    settings = (
        {"cpu.cfs_period_us": period, "cpu.cfs_quota_us": quota}
        if legacy.is_dir()
        else {"cpu.max": f"{quota} {period}"}
    )
    try:
        group.mkdir()
        for name, value in settings.items():
            (group / name).write_text(f"{value}")
    except OSError as error:
        pytest.skip(f"no CPU quota can be set: {error}")
    (group / "cgroup.procs").write_text(f"{pid}")
    try:
        yield
    finally:
        (group.parent / "cgroup.procs").write_text(f"{pid}")
        group.rmdir()


async def wait_for_alert(
    agent: AlertWatcher, name: str, state: str = "firing", subject: str | None = None
) -> dict[str, Any]:
    """Wait for an alert of this name, and return the first one."""

    def found() -> list[dict[str, Any]]:
        return [
            alert
            for alert in agent.alerts
            if (alert["alert"], alert["state"]) == (name, state) and (subject is None or alert["subject"] == subject)
        ]

    await until(found, 300)
    return found()[0]


async def add_disks(guest: Guest, *names: str) -> None:
    """Add disks without a device to QEMU. They contain zeroes."""
    for name in names:
        await guest.command("blockdev-add", driver="null-co", node_name=name, size=8 * MIB, read_zeroes=True)


async def test_jobs_that_are_stuck_full_or_forgotten_have_alerts(folder: Path) -> None:
    short = [
        {"alert": name, "duration": "1s"}
        for name in ("job_stuck", "job_unfinished", "job_not_dismissed", "job_pending")
    ]
    async with (
        thin_guest(folder, extra=["-S"]) as guest,
        AlertWatcher(folder, poll=0.5, alerts={"overrides": short}) as agent,
    ):
        await agent.until_attached()  # the event of the job that fails is not repeated
        await add_disks(guest, *(f"source{n}" for n in range(6)), *(f"target{n}" for n in range(6)))
        full = [{"iotype": kind, "errno": 28, "once": False, "immediately": True} for kind in ("write", "write-zeroes")]
        rules = [{"event": "none", **rule} for rule in full]
        for number, (job, policy) in enumerate((("failing", "report"), ("stopped", "stop"))):
            faulty = {
                "driver": "blkdebug",
                "node_name": f"{job}-target",
                "image": f"target{number}",
                "inject_error": rules,
            }
            await guest.command("blockdev-add", **faulty)
            backup = {"job_id": job, "device": f"source{number}", "target": f"{job}-target", "on_target_error": policy}
            await guest.command("blockdev-backup", sync="full", **backup)
        slow = {"job_id": "slow", "device": "source5", "target": "target5", "sync": "full", "speed": 1}
        await guest.command("blockdev-backup", **slow)
        mirror = {"job_id": "ready", "device": "source2", "target": "target2", "sync": "none"}
        await guest.command("blockdev-mirror", **mirror)
        ended = {"job_id": "ended", "device": "source3", "target": "target3", "sync": "full", "auto_dismiss": False}
        await guest.command("blockdev-backup", **ended)
        pending = {
            "job_id": "pending",
            "device": "source4",
            "target": "target4",
            "sync": "full",
            "auto_finalize": False,
        }
        await guest.command("blockdev-backup", **pending)
        failed = await wait_for_alert(agent, "job_failed", subject="failing")
        assert "No space left" in failed["error"]
        assert (await wait_for_alert(agent, "job_io_error", subject="stopped"))["io_status"] == "nospace"
        await wait_for_alert(agent, "job_stuck", subject="slow")
        assert (await wait_for_alert(agent, "job_unfinished"))["subject"] == "ready"
        assert (await wait_for_alert(agent, "job_not_dismissed"))["subject"] == "ended"
        assert (await wait_for_alert(agent, "job_pending"))["subject"] == "pending"
        await guest.command("job-complete", id="ready")
        await guest.command("job-dismiss", id="ended")
        await guest.command("job-finalize", id="pending")
        for name in ("job_unfinished", "job_not_dismissed", "job_pending"):
            await wait_for_alert(agent, name, "resolved")


async def test_snapshots_have_alerts_by_their_number_and_age(folder: Path) -> None:
    overrides = [{"alert": "chain_deep", "limit": 1}, {"alert": "snapshot_old", "limit": "1s"}]
    async with (
        thin_guest(folder, extra=["-S"]) as guest,
        AlertWatcher(folder, poll=0.5, resync=1.0, alerts={"overrides": overrides}) as agent,
    ):
        await until(lambda: agent.space(guest.name), 180)
        for number in range(2):
            await guest.command(
                "blockdev-snapshot-sync",
                node_name="disk0-format" if number == 0 else "overlay0",
                snapshot_file=f"{folder}/overlay{number}.qcow2",
                snapshot_node_name=f"overlay{number}",
                format="qcow2",
            )
        assert (await wait_for_alert(agent, "chain_deep", subject="disk0"))["depth"] == 2
        old = await wait_for_alert(agent, "snapshot_old", subject="disk0")
        assert (old["snapshot_kind"], old["snapshot_age_seconds"] > 1) == ("external", True)
        base = (await guest.nodes())["disk0-storage"]["file"]
        await guest.command("block-commit", job_id="merge", device="overlay1", base=base)
        await guest.wait_for_event("BLOCK_JOB_READY")
        await guest.command("job-complete", id="merge")
        await wait_for_alert(agent, "chain_deep", "resolved")
        await wait_for_alert(agent, "snapshot_old", "resolved")


async def test_a_bitmap_that_a_killed_qemu_left_behind_is_inconsistent(folder: Path) -> None:
    async with thin_guest(folder, extra=["-S"]) as guest, AlertWatcher(folder, poll=0.5) as agent:
        await guest.command("block-dirty-bitmap-add", node="disk0-format", name="backup", persistent=True)
        await guest.stop()
        await guest.start()
        assert (await guest.nodes())["disk0-format"]["dirty-bitmaps"][0]["name"] == "backup"
        await guest.kill()
        await guest.stop()
        await guest.start()
        alert = await wait_for_alert(agent, "bitmap_inconsistent", subject="disk0")
        assert alert["level"] == "backup"
        await guest.command("block-dirty-bitmap-remove", node="disk0-format", name="backup")


async def test_a_failed_migration_and_a_lost_network_peer_have_alerts(folder: Path) -> None:
    peers: list[asyncio.StreamWriter] = []
    server = await asyncio.start_unix_server(lambda _reader, writer: peers.append(writer), folder / "peer")
    stream = f"stream,id=net0,server=off,addr.type=unix,addr.path={folder}/peer"
    overrides = [{"alert": "netdev_stream_lost", "duration": "1s"}]
    async with (
        server,
        thin_guest(folder, extra=["-S", "-netdev", stream]) as guest,
        AlertWatcher(folder, poll=0.5, alerts={"overrides": overrides}) as agent,
    ):
        await until(lambda: peers and agent.space(guest.name), 180)
        await guest.command("migrate", uri=f"tcp:127.0.0.1:{free_port()}")
        failed = await wait_for_alert(agent, "migration_failed")
        assert "refused" in failed["error"]
        peers[0].close()
        await peers[0].wait_closed()
        await wait_for_alert(agent, "netdev_stream_lost", subject="net0")


async def test_a_guest_that_resets_itself_and_an_own_alert_on_the_same_event(folder: Path) -> None:
    own = {
        "name": "guest_reset",
        "event": "RESET",
        "when": "reason == guest-reset",
        "resolve_after": "1s",
        "severity": "info",
    }
    async with (
        Guest(folder, "vm1", boot_options(folder, RESETTING)),
        AlertWatcher(folder, poll=0.5, alerts={"custom": [own]}) as agent,
    ):
        alert = await wait_for_alert(agent, "reset_loop")
        assert (alert["count"], alert["reason"]) == (5, "guest-reset")
        assert (await wait_for_alert(agent, "guest_reset"))["help"] == "RESET: reason == guest-reset."
        assert agent.records("qemu.alert.custom")[0]["alert"] == "guest_reset"


async def test_a_vcpu_that_a_quota_starves_meets_the_rule(folder: Path, start_prometheus: StartPrometheus) -> None:
    (rule,) = [rule for group in RULES["groups"] for rule in group["rules"] if rule["alert"] == "QemuVcpuStarved"]
    async with Guest(folder, "vm1", boot_options(folder, BUSY)) as guest, AlertWatcher(folder, poll=0.5) as agent:
        assert guest.process is not None
        with cpu_quota(guest.process.pid, 0.2):
            prometheus = await start_prometheus(agent.url.removeprefix("http://"), job="qmp-agent")
            starved: list[dict[str, Any]] = []

            async def is_starved() -> bool:
                starved[:] = await prometheus.query(rule["expr"].replace("[5m]", "[10s]"))
                return bool(starved)

            await until(is_starved, 300)
    assert starved[0]["metric"]["vm_uuid"] == guest.uuid
