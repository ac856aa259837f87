"""Metrics of QEMU's process and network interfaces equal the values that the test reads from /proc and sysfs."""

import asyncio
import contextlib
import os
import re
import signal
import socket
import subprocess
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest

from agent.cli.demo.guest import Guest, GuestKind
from tests.lab.agent_process import AgentProcess, Scrape
from tests.lab.fixtures import StartGuest
from tests.lab.waiting import until

TICK = 1 / os.sysconf("SC_CLK_TCK")
QUICK = {"poll": "200ms", "resync": "1s"}

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can create network interfaces and namespaces")


@contextlib.asynccontextmanager
async def watching_agent(folder: Path, **config: Any) -> AsyncIterator[AgentProcess]:
    base: dict[str, Any] = {
        "monitors": [{"dial": f"{folder}/*.qmp"}],
        "intervals": QUICK,
        "timeouts": {"response": "1s"},
    }
    async with AgentProcess(folder, base | config) as agent:
        yield agent


def pid_of(guest: Guest) -> int:
    assert guest.process is not None
    return guest.process.pid


async def fresh_scrape(agent: AgentProcess, guest: Guest, kind: str = "process") -> Scrape:
    """Return a scrape with values that the agent read after this call."""
    return await agent.fresh_metrics(f"sample.{kind}", vm=guest.uuid)


async def wait_until_stopped(pid: int) -> None:
    """Wait until all threads of a process are stopped. A stopped thread may still run for a moment."""
    await until(lambda: all(stat(f"{task}/stat")[0] == "T" for task in Path(f"/proc/{pid}/task").iterdir()))


# Independent readers of /proc: the agent's own readers are under test.


def read(path: str) -> str:
    return Path(path).read_text("utf-8")


def stat(path: str) -> list[str]:
    """Return the fields of a /proc `stat` file from the third field on."""
    return read(path).rpartition(")")[2].split()


def status(pid: int, key: str) -> int:
    line = next(line for line in read(f"/proc/{pid}/status").splitlines() if line.startswith(f"{key}:"))
    return int(line.split()[1])


def cpu_seconds(path: str) -> float:
    fields = stat(path)
    return (int(fields[11]) + int(fields[12])) * TICK


async def test_process_and_vcpu_metrics_of_a_busy_guest_match_proc(folder: Path, start_guest: StartGuest) -> None:
    guest = await start_guest(kind=GuestKind.WRITER, pause_seconds=0, extra=["-smp", "2", "-object", "iothread,id=io0"])
    await guest.wait_until_booted()
    pid = pid_of(guest)
    cpus = {str(cpu["cpu-index"]): cpu for cpu in await guest.command("query-cpus-fast")}
    (iothread,) = await guest.command("query-iothreads")
    async with watching_agent(folder, timeouts={"response": "500ms"}) as agent:
        await fresh_scrape(agent, guest, "vcpu")
        before = await fresh_scrape(agent, guest, "vcpu")
        await asyncio.gather(
            *(agent.wait_for_record("sample.vcpu", vm=guest.uuid, since=agent.mark(), vcpu=cpu) for cpu in cpus)
        )
        guest.send_signal(signal.SIGSTOP)  # freezes the counters, so that they can be compared exactly
        await wait_until_stopped(pid)
        of = {"vm_uuid": guest.uuid}

        async def reports_stopped() -> bool:
            return (await agent.metrics()).value("qemu_process_state", **of, state="stopped") == 1

        await until(reports_stopped)  # the process metrics go on while QEMU does not reply
        series = await fresh_scrape(agent, guest, "vcpu")
        for index, cpu in cpus.items():
            task = f"/proc/{pid}/task/{cpu['thread-id']}"
            run, delay, slices = map(int, read(f"{task}/schedstat").split())
            mine = of | {"vcpu": index}
            assert series.value("qemu_vcpu_cpu_seconds_total", **mine) == run / 1e9
            assert series.value("qemu_vcpu_run_delay_seconds_total", **mine) == delay / 1e9
            assert series.value("qemu_vcpu_timeslices_total", **mine) == slices
            parts = [series.value(f"qemu_vcpu_{part}_seconds_total", **mine) or 0 for part in ("user", "system")]
            assert sum(parts) == pytest.approx(cpu_seconds(f"{task}/stat"), abs=TICK)
            assert series.value("qemu_vcpu_state", **mine, state="stopped") == 1
            assert series.value("qemu_vcpu_host_cpu", **mine) == int(stat(f"{task}/stat")[36])
            first = before.value("qemu_vcpu_cpu_seconds_total", **mine) or 0
            assert (series.value("qemu_vcpu_cpu_seconds_total", **mine) or 0) >= first
        assert (series.value("qemu_vcpu_cpu_seconds_total", **of, vcpu="0") or 0) > 0.1
        run, *_ = map(int, read(f"/proc/{pid}/task/{iothread['thread-id']}/schedstat").split())
        assert series.value("qemu_iothread_cpu_seconds_total", **of, iothread="io0") == run / 1e9
        assert series.value("qemu_iothread_poll_max_seconds", **of, iothread="io0") == iothread["poll-max-ns"] / 1e9
        parts = [series.value(f"qemu_process_{part}_seconds_total", **of) or 0 for part in ("user", "system")]
        assert sum(parts) == pytest.approx(cpu_seconds(f"/proc/{pid}/stat"), abs=2 * TICK)
        for key, name in {
            "VmRSS": "resident_bytes",
            "VmSize": "virtual_bytes",
            "RssAnon": "resident_anonymous_bytes",
        }.items():
            assert series.value(f"qemu_process_{name}", **of) == status(pid, key) * 1024
        assert series.value("qemu_process_threads", **of) == status(pid, "Threads")
        assert series.value("qemu_process_main_loop_voluntary_switches_total", **of) == status(
            pid, "voluntary_ctxt_switches"
        )
        io = dict(line.split(": ") for line in read(f"/proc/{pid}/io").splitlines())
        assert series.value("qemu_process_write_bytes_total", **of) == int(io["write_bytes"])
        assert series.value("qemu_process_open_fds", **of) == len(os.listdir(f"/proc/{pid}/fd"))  # noqa: PTH208 - a count
        started = series.value("qemu_process_start_timestamp_seconds", **of)
        created = os.stat(f"/proc/{pid}").st_ctime  # noqa: PTH116 - of a process that runs
        assert started == pytest.approx(created, abs=60)
        guest.send_signal(signal.SIGCONT)
        record = await agent.wait_for_record("sample.vcpu", vm=guest.uuid, vcpu="0")
    assert record["subject"] == "0"
    assert record["data"]["thread"] == cpus["0"]["thread-id"]
    assert record["data"]["topology"] == cpus["0"]["props"]


async def test_machine_type_accelerator_and_pid_are_in_qemu_vm_info_and_in_a_record(
    folder: Path, start_guest: StartGuest
) -> None:
    guest = await start_guest(kind=GuestKind.WRITER)
    async with watching_agent(folder) as agent:
        record = await agent.wait_for_record("sample.identity", vm=guest.uuid)
        series = await fresh_scrape(agent, guest)
    machine = (await guest.command("qom-get", path="/machine", property="type")).removesuffix("-machine")
    assert record["data"] == {"machine": machine, "accelerator": "other", "pid": str(pid_of(guest))}
    assert series.value("qemu_vm_info", vm_uuid=guest.uuid, machine=machine, pid=str(pid_of(guest))) == 1


async def test_a_killed_qemu_leaves_no_series_and_no_error_in_the_log(folder: Path, start_guest: StartGuest) -> None:
    guest = await start_guest(kind=GuestKind.WRITER)
    async with watching_agent(folder) as agent:
        await fresh_scrape(agent, guest, "vcpu")
        first = pid_of(guest)
        await guest.kill()

        async def has_no_series() -> bool:
            return (await agent.metrics()).names_of(guest.uuid) == []

        await until(has_no_series)
        await guest.stop()
        await guest.start()
        assert pid_of(guest) != first
        series = await fresh_scrape(agent, guest)
        assert series.value("qemu_vm_info", vm_uuid=guest.uuid, pid=str(pid_of(guest))) == 1
        assert "Traceback" not in agent.log
        assert '"level":"error"' not in agent.log


async def test_a_hotplugged_vcpu_is_found_at_the_next_device_event(folder: Path, start_guest: StartGuest) -> None:
    guest = await start_guest(kind=GuestKind.WRITER, extra=["-smp", "1,maxcpus=2", "-usb"])
    async with watching_agent(folder, intervals={"poll": "200ms", "resync": "1h"}) as agent:
        await fresh_scrape(agent, guest, "vcpu")
        free = next(cpu for cpu in await guest.command("query-hotpluggable-cpus") if "qom-path" not in cpu)
        properties = {key.replace("-", "_"): value for key, value in free["props"].items()}
        await guest.command("device_add", driver=free["type"], id="cpu1", **properties)
        await guest.command("device_add", driver="usb-tablet", id="tablet0")
        await guest.command("device_del", id="tablet0")
        await agent.wait_for_record("sample.vcpu", vm=guest.uuid, vcpu="1")
        assert len((await agent.metrics()).matching("qemu_vcpu_cpu_seconds_total", vm_uuid=guest.uuid)) == 2


async def test_both_qemus_of_a_migration_have_metrics_of_their_own_process(
    folder: Path, start_guest: StartGuest
) -> None:
    source = await start_guest("a", kind=GuestKind.WRITER)
    uri = f"unix:{folder}/m"
    target = await start_guest("b", kind=GuestKind.WRITER, identity=source.uuid, extra=["-incoming", uri])
    async with watching_agent(folder) as agent:
        pids = {pid_of(source), pid_of(target)}
        await until(lambda: {r["data"]["pid"] for r in agent.find_records("sample.process")} == pids)
        await source.command("migrate", uri=uri)

        async def has_migrated() -> bool:
            return bool((await target.command("query-status"))["status"] == "running")

        await until(has_migrated)
        await agent.wait_for_record("sample.runstate", vm=source.name, status="postmigrate")
        await source.stop()
        await agent.wait_for_record("vm.migrated_out", vm=source.name)

        async def has_only_the_target() -> bool:
            infos = (await agent.metrics()).matching("qemu_vm_info", vm_uuid=source.uuid)
            return [labels["pid"] for labels, _ in infos] == [str(pid_of(target))]

        await until(has_only_the_target)
        assert "Traceback" not in agent.log


# --- Network interfaces and namespaces ---


@pytest.fixture
def tap() -> Iterator[str]:
    name = f"qmpt{os.getpid() % 10**6}"
    subprocess.run(["ip", "tuntap", "add", name, "mode", "tap"], check=True)
    subprocess.run(["ip", "link", "set", name, "address", "fe:54:00:12:34:56", "up"], check=True)
    yield name
    subprocess.run(["ip", "link", "delete", name], check=True)


def card(tap: str) -> list[str]:
    backend = f"tap,id=net0,ifname={tap},script=no,downscript=no"
    return ["-netdev", backend, "-device", "virtio-net-pci,id=nic0,netdev=net0,mac=52:54:00:12:34:56"]


@needs_root
async def test_tap_counters_match_the_hosts_with_directions_as_the_guest_sees_them(
    folder: Path, start_guest: StartGuest, tap: str
) -> None:
    guest = await start_guest(kind=GuestKind.WRITER, extra=card(tap))
    async with watching_agent(folder) as agent:
        expected: dict[str, Any] = {"kind": "tap", "mac": "52:54:00:12:34:56", "device": "nic0", "netdev": "net0"}
        await agent.wait_for_record("sample.net", vm=guest.uuid, subject=tap, **expected)

        def counter(name: str) -> int:
            return int(read(f"/sys/class/net/{tap}/statistics/{name}"))

        with socket.socket(socket.AF_PACKET, socket.SOCK_RAW) as wire:
            wire.bind((tap, 0))
            wire.send(bytes.fromhex("525400123456 fe5400123456 88b5") + bytes(50))

        async def matches_the_host() -> bool:
            series = await agent.metrics()
            of = {"vm_uuid": guest.uuid, "interface": tap}
            pairs = {"tx_packets": "receive_packets", "tx_bytes": "receive_bytes", "rx_packets": "transmit_packets"}
            pairs |= {"tx_dropped": "receive_drops", "rx_bytes": "transmit_bytes"}
            return all(series.value(f"qemu_net_{ours}_total", **of) == counter(name) for name, ours in pairs.items())

        await until(matches_the_host)
        assert counter("tx_packets") + counter("tx_dropped") > 0


@needs_root
async def test_a_qemu_in_its_own_pid_namespace_is_found_by_its_thread_ids_there(
    folder: Path, start_guest: StartGuest
) -> None:
    wrapper = folder / "qemu-apart"
    wrapper.write_text('#!/bin/sh\nexec unshare --pid --net --fork --kill-child qemu-system-x86_64 "$@"\n')
    wrapper.chmod(0o755)
    guest = await start_guest(kind=GuestKind.WRITER, binary=str(wrapper), extra=["-smp", "2", *card("tap0")])
    inner = {cpu["thread-id"] for cpu in await guest.command("query-cpus-fast")}
    async with watching_agent(folder) as agent:
        series = await fresh_scrape(agent, guest, "net")
        (pid,) = {record["data"]["pid"] for record in agent.find_records("sample.process")}
        names = re.findall(r"NSpid:\s+(\d+)\s+1\n", read(f"/proc/{pid}/status"))
        assert names == [str(pid)]
        assert len(series.matching("qemu_vcpu_cpu_seconds_total", vm_uuid=guest.uuid)) == 2
        outer = {record["data"]["thread"] for record in agent.find_records("sample.vcpu")}
        assert not outer & inner
        assert all(read(f"/proc/{pid}/task/{thread}/stat") for thread in outer)
        assert series.value("qemu_net_receive_bytes_total", vm_uuid=guest.uuid, interface="tap0") is not None
    await guest.kill()  # unshare does not pass on a SIGTERM


async def test_without_a_known_process_its_metrics_are_off_and_the_reason_is_reported_once(
    folder: Path, start_guest: StartGuest
) -> None:
    guest = await start_guest(kind=GuestKind.WRITER, extra=["-qmp", "tcp:127.0.0.1:0,server=on,wait=off"])
    ports = [d["filename"] for d in await guest.command("query-chardev") if "tcp:127.0.0.1:" in d.get("filename", "")]
    address = re.search(r"tcp:127\.0\.0\.1:\d+", ports[0])
    assert address is not None
    async with AgentProcess(folder, {"monitors": [{"dial": address[0]}], "intervals": QUICK}) as agent:
        await agent.wait_for_record("sample.block", vm=guest.uuid)
        record = await agent.wait_for_record("sample.identity", vm=guest.uuid)
        assert record["data"]["process_unknown_reason"].startswith("the monitor is not a Unix socket")
        await agent.wait_for_record("sample.block", vm=guest.uuid, since=agent.mark())
        names = (await agent.metrics()).names_of(guest.uuid)
        assert not [name for name in names if name.startswith(("qemu_process_", "qemu_vcpu_", "qemu_net_"))]
        assert len(list(agent.find_records("sample.identity"))) == 1
        assert '"level":"warning"' not in agent.log


async def test_metadata_in_libvirts_xml_becomes_labels_of_qemu_vm_info(folder: Path, start_guest: StartGuest) -> None:
    guest = await start_guest(kind=GuestKind.IDLE)
    flavor = "<metadata><i:instance xmlns:i='x'><i:flavor name='m1.\"small\"'/></i:instance></metadata>"
    xml = f"<domstatus><domain><uuid>{guest.uuid}</uuid><title>web 1</title>{flavor}</domain></domstatus>"
    (folder / f"{guest.name}.xml").write_text(xml)
    async with watching_agent(folder, labels={"libvirt_xml_dirs": [str(folder)]}) as agent:
        record = await agent.wait_for_record("sample.identity", vm=guest.uuid)
        assert record["data"]["labels"] == {"title": "web 1", "nova_flavor": 'm1."small"'}
        series = await agent.metrics()
        assert series.value("qemu_vm_info", vm_uuid=guest.uuid, title="web 1", nova_flavor='m1."small"') == 1
        (folder / f"{guest.name}.xml").write_text(xml.replace("web 1", "web 2"))
        await agent.wait_for_record(
            "sample.identity", vm=guest.uuid, labels={"title": "web 2", "nova_flavor": 'm1."small"'}
        )
