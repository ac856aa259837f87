"""doctor on a real QEMU whose monitor has a path through a descriptor, as Incus gives it."""

import os
import socket
from pathlib import Path

from agent.cli.doctor.inspection import inspect_host
from agent.cli.doctor.model import HostToInspect, MonitorReport
from agent.host.socket_permissions import read_process_user
from tests.lab.fixtures import StartGuest
from tests.lab.manager_hosts import INCUS_CONF
from tests.lab.waiting import until


async def test_doctor_finds_the_client_of_a_monitor_with_a_path_through_a_descriptor(
    start_guest: StartGuest, folder: Path
) -> None:
    directory = folder / "incus" / "v1"
    directory.mkdir(parents=True)
    conf = directory / "qemu.conf"
    conf.write_text(INCUS_CONF[INCUS_CONF.index("# Qemu control") :].replace("/fd/3/", "/fd/999/"))
    qemu = folder / "qemu"
    qemu.write_text(f'#!/bin/bash\nexec 999<{directory}\nexec qemu-system-x86_64 "$@"\n')
    qemu.chmod(0o755)
    guest = await start_guest(binary=str(qemu), extra=["-readconfig", str(conf), "-qmp", "chardev:monitor"])
    path = directory / "qemu.monitor"

    def inspect_monitor() -> MonitorReport:
        (vm,) = inspect_host(HostToInspect(read_process_user(os.getpid())), guest.uuid)
        assert vm.manager == "Incus"
        return next(monitor for monitor in vm.monitors if monitor.address == str(path))

    assert (inspect_monitor().state, inspect_monitor().used_by_manager) == ("free", True)
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(str(path))
        await until(lambda: inspect_monitor().holder_pid == os.getpid())
