"""Storage that hangs: the agent reports it, sends no command that waits for it, and delays no other VM."""

import asyncio
import signal
from pathlib import Path
from typing import Final

from agent.cli.demo.guest import Guest, GuestKind, GuestOptions
from tests.e2e.test_host_failures import LONGEST_GAP_SECONDS, OTHER_UUID, bystander, poll_gaps, watching_agent
from tests.lab.hung_storage import LONGEST_REPLY_SECONDS, WriterToDevice, device_on, fuse, longest_reply, on_fuse
from tests.lab.waiting import until

UNHURRIED: Final = {"response": "120s", "greeting": "120s", "max_retry_delay": "1s", "shutdown": "2s"}
"""Timeouts for a VM that must not be stalled, on a busy machine. `longest_reply` fails if a command waits for the storage: the command
gets no reply until the hang ends, and the hang lasts until `longest_reply` returns."""


async def test_a_vm_on_hung_storage_keeps_running_because_no_command_accesses_it(folder: Path) -> None:
    async with fuse(folder) as (served, server), bystander(folder) as other:
        intervals = {"poll": "200ms", "resync": "2s"}
        watching = watching_agent(folder, intervals=intervals, timeouts=UNHURRIED)
        async with on_fuse(folder, served) as guest, watching as agent:
            storage = await agent.wait_for_record("sample.block_storage", vm=guest.uuid, device="hung")
            assert storage["data"]["pool"] == str(served)
            await agent.wait_for_record("sample.pool", pool=str(served))
            begin = agent.mark()
            server.send_signal(signal.SIGSTOP)
            try:
                replies = asyncio.create_task(longest_reply(guest, 12))
                silent = await agent.wait_for_record(
                    "alert.pool_unresponsive", subject=str(served), since=begin, state="firing"
                )
                assert silent["data"]["vm_names"] == ["vm1"]
                polls = other.count("query-blockstats")
                await until(lambda: other.count("query-blockstats") > polls + 5)
                await replies
                assert (await agent.metrics()).value("qemu_pool_responsive", pool=str(served)) == 0

                async def has_deferred_a_query() -> bool:
                    deferred = {"collector": "nodes", "outcome": "deferred"}
                    return bool((await agent.metrics()).value("qmp_agent_collector_runs_total", **deferred))

                await until(has_deferred_a_query)
                assert (await agent.get("/healthz"))[0] == 200
            finally:
                server.send_signal(signal.SIGCONT)
            await agent.wait_for_record("alert.pool_unresponsive", subject=str(served), since=begin, state="resolved")
            await agent.wait_for_record("sample.block", vm=guest.uuid, since=agent.mark())
            assert not [*agent.find_records("vm.stalled", vm=guest.uuid)]
            assert max(poll_gaps(agent, OTHER_UUID)) < LONGEST_GAP_SECONDS


async def test_a_block_device_that_hangs_is_reported_and_delays_no_command(folder: Path) -> None:
    intervals = {"poll": "200ms", "storage": "1s"}
    async with fuse(folder) as (served, server), device_on(served) as device:
        disk = f"host_device,node-name=hung,filename={device},cache.direct=on"
        arguments = ("-blockdev", disk, "-device", "virtio-blk-pci,drive=hung,id=disk0")
        boot = GuestOptions(kind=GuestKind.WRITER, write_kib=4, disk_mib=16, extra=arguments)
        watching = watching_agent(folder, intervals=intervals, timeouts=UNHURRIED)
        async with WriterToDevice(folder, "vm1", boot) as guest, watching as agent:
            await agent.wait_for_record("sample.pool", pool=device)
            await guest.wait_until_booted()
            begin = agent.mark()
            server.send_signal(signal.SIGSTOP)
            try:
                silent = await agent.wait_for_record(
                    "alert.pool_unresponsive", subject=device, since=begin, state="firing"
                )
                assert silent["data"]["vm_names"] == ["vm1"]
                assert "requests wait, and the device has completed none for 5 s" in silent["data"]["error"]
                await longest_reply(guest, 3)
                for command in ("query-block", "query-named-block-nodes"):
                    async with asyncio.timeout(LONGEST_REPLY_SECONDS):
                        await guest.command(command)
            finally:
                server.send_signal(signal.SIGCONT)
            await agent.wait_for_record("alert.pool_unresponsive", subject=device, since=begin, state="resolved")
            assert (await agent.metrics()).value("qemu_pool_responsive", pool=device) == 1
            assert not [*agent.find_records("vm.stalled", vm=guest.uuid)]


async def test_an_agent_that_starts_on_hung_storage_sends_no_command_that_accesses_it(folder: Path) -> None:
    async with fuse(folder) as (served, server), on_fuse(folder, served) as guest:
        server.send_signal(signal.SIGSTOP)
        try:
            async with watching_agent(folder, timeouts=UNHURRIED) as agent:
                silent = await agent.wait_for_record("alert.pool_unresponsive", subject=str(served), state="firing")
                assert silent["data"]["vm_names"] == ["vm1"]
                await longest_reply(guest, 3)
                assert not [*agent.find_records("sample.block_layer", vm=guest.uuid)]
                server.send_signal(signal.SIGCONT)
                await agent.wait_for_record("sample.block_layer", vm=guest.uuid, device="hung")
                await agent.wait_for_record("alert.pool_unresponsive", subject=str(served), state="resolved")
                assert not [*agent.find_records("vm.stalled", vm=guest.uuid)]
        finally:
            server.send_signal(signal.SIGCONT)


async def test_an_agent_ends_in_time_while_storage_hangs(folder: Path) -> None:
    async with fuse(folder) as (served, server), on_fuse(folder, served), watching_agent(folder) as agent:
        await agent.wait_for_record("sample.pool", pool=str(served))
        server.send_signal(signal.SIGSTOP)
        try:
            await agent.wait_for_record("alert.pool_unresponsive", subject=str(served), state="firing")
            assert (await agent.stop()).status == 0, "a stop that waits for the storage would never end"
        finally:
            server.send_signal(signal.SIGCONT)


async def ask_about_storage(guest: Guest) -> None:
    """Send the command that accesses storage again and again: the kernel answers it from its cache for a second."""
    while True:
        await guest.command("query-named-block-nodes")
        await asyncio.sleep(0.1)


async def test_a_vm_is_stalled_when_another_client_makes_its_main_loop_wait_for_storage(folder: Path) -> None:
    async with fuse(folder) as (served, server), bystander(folder) as other:
        guest, agent = on_fuse(folder, served), watching_agent(folder)
        async with guest, agent:
            await agent.wait_for_record("sample.block", vm=guest.uuid, device="hung")
            begin = agent.mark()
            server.send_signal(signal.SIGSTOP)
            asking = asyncio.create_task(ask_about_storage(guest))
            try:
                stalled = await agent.wait_for_record("vm.stalled", vm=guest.uuid, since=begin)
                assert "no reply to " in stalled["data"]["reason"]
                await until(lambda: "the main loop hangs, most often on storage" in agent.log)
                polls = other.count("query-blockstats")
                await until(lambda: other.count("query-blockstats") > polls + 5)
            finally:
                server.send_signal(signal.SIGCONT)
                asking.cancel()
            await agent.wait_for_record("vm.recovered", vm=guest.uuid, since=begin)
            await agent.wait_for_record("sample.block", vm=guest.uuid, since=agent.mark())
            assert max(poll_gaps(agent, OTHER_UUID)) < LONGEST_GAP_SECONDS
