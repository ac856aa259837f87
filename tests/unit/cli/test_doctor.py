"""Reports of `qmp-agent doctor` for the command lines of VM managers, in a fake /proc."""

import os
import shlex
from pathlib import Path
from typing import Final

import pytest

from agent.cli.doctor.argv import readconfig_paths
from agent.cli.doctor.rendering import render_reports
from agent.config.loader import load_config
from agent.host.unix_and_tcp_sockets import ESTABLISHED, SocketTableEntry
from tests.lab.golden_files import FOLDER, same_text
from tests.lab.manager_hosts import GANETI, INCUS, INCUS_CONF, LISTENS, PROXMOX, FakeProcHost

DEPLOY: Final = Path(__file__).parents[3] / "deploy"


@pytest.fixture
def host(tmp_path: Path) -> FakeProcHost:
    return FakeProcHost(tmp_path)


def add_managed_vms(host: FakeProcHost) -> None:
    """Add a VM of each manager."""
    server, client = host.add_connection("/run/qmeventd.sock")
    qmp = host.add_listener("/run/qemu-server/104.qmp")
    host.add_process(104, PROXMOX.format(reconnect="reconnect-ms=5000"), fds={9: qmp, 10: client})
    host.add_process(90, "/usr/sbin/qmeventd /var/run/qmeventd.sock", fds={5: server})

    ctrl = host.proc.parent / "run/ganeti/kvm-hypervisor/ctrl"
    ctrl.mkdir(parents=True)
    for pid, name in ((200, "db.example.com"), (201, "ns.example.com")):
        fds = {9: host.add_listener(f"{ctrl}/{name}.qmp"), 10: host.add_listener(f"{ctrl}/{name}.kvmd")}
        if name == "db.example.com":
            fds[11], kvmd = host.add_connection(f"{ctrl}/{name}.kvmd")
            host.add_process(91, "/usr/sbin/ganeti-kvmd -f", fds={6: kvmd})
        (ctrl / f"{name}.kvmd").touch()
        line = GANETI.replace("db.example.com", name).replace("/var/run/ganeti", str(ctrl.parents[1]))
        host.add_process(pid, line.replace("4f6a01", f"4f6{pid}"), fds=fds)

    client = add_incus_vm(host, "v1")
    host.add_process(92, "/opt/incus/bin/incusd --group incus-admin", fds={21: client})

    system = "/var/lib/libvirt/qemu"
    host.add_libvirt(
        *(400, 93),
        name="ovirt-vm",
        binary="libexec/qemu-kvm",
        folder=system,
        uuid="36e1b0ac-febf-4924-9fe7-305a1589eb00",
        smbios="-smbios type=1,manufacturer=oVirt,product=RHEL,version=8.6,uuid=36e1b0ac-febf-4924-9fe7-305a1589eb00",
    )
    host.add_libvirt(
        *(500, 0),
        name="default_vmi",
        binary="libexec/qemu-kvm",
        folder="/var/run/kubevirt-private/libvirt/qemu/lib",
        uuid="b56f06f0-07e9-4fe5-8913-18a14e83a4d1",
        smbios="-smbios type=1,manufacturer=KubeVirt,product=None,uuid=b56f06f0-07e9-4fe5-8913-18a14e83a4d1",
    )
    host.add_libvirt(
        *(600, 0),
        name="laptop",
        binary="bin/qemu-system-x86_64",
        folder="/home/ada/.config/libvirt/qemu/lib",
        uuid="0c1d7c5c-6a53-4b2e-8f43-33de9c1f2a01",
        smbios="",
    )


def add_incus_vm(host: FakeProcHost, directory: str) -> int:
    """Add a VM of Incus with its directory in /run/incus. Return the inode of the client's end of its monitor."""
    server, client = host.add_connection(
        "/proc/self/fd/3/qemu.monitor"
    )  # the kernel has the path by which QEMU created it
    folder = host.add_process(300, INCUS.replace("/v1/", f"/{directory}/"), uid=4242, fds={8: server})
    host.open_directory(300, 3, f"/run/incus/{directory}")
    conf = folder / f"root/run/incus/{directory}/qemu.conf"
    conf.parent.mkdir(parents=True)
    conf.write_text(INCUS_CONF)
    return client


def test_each_manager_gets_its_holders_and_the_exact_steps(host: FakeProcHost) -> None:
    add_managed_vms(host)
    text = "\n".join(render_reports(host.inspect())) + "\n"
    assert same_text("doctor-managers.txt", text.replace(str(host.proc.parent), "/var"))


def test_the_example_in_the_docs_is_real_output() -> None:
    page = (DEPLOY.parent / "docs" / "reference" / "doctor.md").read_text()
    example = page[page.index("web  uuid") :].partition("```")[0]
    assert example in (FOLDER / "doctor-managers.txt").read_text()


def test_after_the_steps_the_vms_of_each_manager_are_configured(host: FakeProcHost) -> None:
    add_managed_vms(host)
    added = (
        "-chardev socket,id=qmp-agent,path=/run/qmp-agent/monitor.sock,reconnect=5 -mon chardev=qmp-agent,mode=control"
    )
    for pid in (104, 200, 300):  # the steps add these arguments
        path = host.proc / str(pid) / "cmdline"
        path.write_bytes(path.read_bytes() + "\0".join([*added.split(), ""]).encode())
    monitors: list[dict[str, object]] = [
        {"listen": "/run/qmp-agent/monitor.sock", "users": ["root", 4242]},
        {"dial": f"{host.proc.parent}/run/ganeti/kvm-hypervisor/ctrl/*.kvmd"},
        {"libvirt": "qemu:///system"},
        {"libvirt": "qemu+unix:///session?socket=/run/user/1000/libvirt/libvirt-sock"},
    ]
    entries = {vm.name: (vm.state, vm.entry.partition(":")[0]) for vm in host.inspect(monitors)}
    assert entries == {
        "web": ("configured", "listen"),
        "db.example.com": ("configured", "listen"),
        "ns.example.com": ("configured", "dial"),
        "v1": ("configured", "listen"),
        "ovirt-vm": ("configured", "libvirt"),
        "default_vmi": ("configured", "libvirt"),
        "laptop": ("configured", "libvirt"),
    }


def test_all_libvirts_in_the_config_cover_the_vms_of_every_libvirt(host: FakeProcHost) -> None:
    add_managed_vms(host)
    entries = {vm.name: (vm.state, vm.entry) for vm in host.inspect([{"libvirt": "auto"}])}
    for name in ("ovirt-vm", "default_vmi", "laptop"):
        assert entries[name] == ("configured", "libvirt: auto")
    assert entries["web"][0] == "unwatched"


def test_a_vm_in_a_project_of_incus_gets_steps_for_that_project(host: FakeProcHost) -> None:
    add_incus_vm(host, "shop_v1")
    (vm,) = host.inspect()
    assert vm.monitors[0].address == "/run/incus/shop_v1/qemu.monitor"
    commands = [step for step in vm.steps if "incus config set" in step]
    assert len(commands) == 2
    assert all(command.startswith("  incus config set v1 --project shop raw.") for command in commands)


def test_a_monitor_that_its_manager_will_hold_is_not_offered_for_sharing(host: FakeProcHost) -> None:
    add_incus_vm(host, "v1")
    host.table.clear()
    host.table[1] = SocketTableEntry(LISTENS, "/proc/self/fd/3/qemu.monitor")  # incusd restarts
    (vm,) = host.inspect()
    assert (vm.monitors[0].state, vm.section) == ("free", "listen")
    assert not any("dial_per_poll" in step for step in vm.steps)


def test_a_path_through_a_hidden_descriptor_is_shown_as_qemu_has_it(host: FakeProcHost) -> None:
    add_incus_vm(host, "v1")
    (host.proc / "300" / "fd" / "3").unlink()
    monitor = host.inspect()[0].monitors[0]
    assert (monitor.address, monitor.state) == ("/proc/self/fd/3/qemu.monitor", "held")


def test_doctor_warns_of_an_entry_that_keeps_the_manager_from_its_monitor(host: FakeProcHost) -> None:
    client = add_incus_vm(host, "v1")
    host.add_process(90, "/usr/bin/python3 /usr/bin/qmp-agent run", fds={7: client})
    (vm,) = host.inspect([{"dial": "/run/incus/*/qemu.monitor"}])
    assert [(monitor.address, monitor.holder) for monitor in vm.monitors] == [
        ("/run/incus/v1/qemu.monitor", "qmp-agent")
    ]
    assert (
        "  /run/incus/v1/qemu.monitor: held by qmp-agent (pid 90), but the manager needs it: remove `dial: /run/incus/*/qemu.monitor`"
    ) in list(render_reports([vm]))


def test_doctor_warns_of_an_entry_that_would_keep_the_manager_from_its_monitor(host: FakeProcHost) -> None:
    host.add_process(
        104, PROXMOX.format(reconnect="reconnect=5"), fds={9: host.add_listener("/run/qemu-server/104.qmp")}
    )
    for entry, warning in (("dial", ": remove `dial: /run/qemu-server/*.qmp`"), ("dial_per_poll", "")):
        lines = list(render_reports(host.inspect([{entry: "/run/qemu-server/*.qmp"}])))
        assert f"  /var/run/qemu-server/104.qmp: free, but the manager needs it{warning}" in lines


def test_a_shared_socket_may_be_held_by_its_manager(host: FakeProcHost) -> None:
    folder = host.proc.parent / "qemu-server"
    folder.mkdir()
    (folder / "104.qmp").touch()
    server, client = host.add_connection(f"{folder}/104.qmp")
    line = PROXMOX.format(reconnect="reconnect=5").replace("/var/run/qemu-server", str(folder))
    host.add_process(104, line, fds={9: host.add_listener(f"{folder}/104.qmp"), 10: server})
    host.add_process(90, "/usr/bin/perl -T /usr/sbin/qm status 104", fds={7: client})
    (vm,) = host.inspect([{"dial_per_poll": f"{folder}/*.qmp"}])
    assert (vm.monitors[0].state, vm.monitors[0].holder) == ("held", "qm")
    assert not any("manager needs it" in line for line in render_reports([vm]))
    assert (vm.state, vm.entry) == ("configured", f"dial_per_poll: {folder}/*.qmp")
    (vm,) = host.inspect([{"dial": f"{folder}/*.qmp"}])
    assert vm.state == "unwatched"


@pytest.mark.parametrize(("is_root", "state", "has_steps"), [(True, "unwatched", True), (False, "unknown", False)])
def test_only_root_gets_advice_about_a_monitor_with_an_unknown_client(
    host: FakeProcHost, *, is_root: bool, state: str, has_steps: bool
) -> None:
    server, _ = host.add_connection("/run/qemu/web.qmp")
    fds = {9: host.add_listener("/run/qemu/web.qmp"), 10: server}
    host.add_process(7, "qemu-system-x86_64 -name web -qmp unix:/run/qemu/web.qmp,server=on,wait=off", fds=fds)
    (vm,) = host.inspect(is_root=is_root)
    assert (vm.state, bool(vm.steps)) == (state, has_steps)
    assert any("run doctor as root" in line for line in render_reports([vm])) is not is_root


def test_a_vm_of_a_refused_user_gets_the_entry_that_allows_it(host: FakeProcHost) -> None:
    add_managed_vms(host)
    added = (
        "-chardev socket,id=qmp-agent,path=/run/qmp-agent/monitor.sock,reconnect=5 -mon chardev=qmp-agent,mode=control"
    )
    path = host.proc / "300" / "cmdline"
    path.write_bytes(path.read_bytes() + "\0".join([*added.split(), ""]).encode())
    (vm,) = host.inspect([{"listen": "/run/qmp-agent/monitor.sock", "users": ["root", "daemon"]}], "v1")
    assert (vm.state, vm.monitors[-1].missing) == (
        "unwatched",
        "the agent refuses connections of the processes of 4242",
    )
    assert vm.steps[1:] == (
        "  monitors:",
        "    - listen: /run/qmp-agent/monitor.sock",
        "      users: [root, daemon, 4242]",
    )
    for entry in ({"users": ["root", 4242]}, {"groups": ["root"]}):  # its group is 0
        (vm,) = host.inspect([{"listen": "/run/qmp-agent/monitor.sock", **entry}], "v1")
        assert (vm.state, vm.monitors[-1].missing) == ("configured", "")


def test_a_hotplugged_monitor_of_the_agent_counts_as_watched(host: FakeProcHost) -> None:
    server, client = host.add_connection("/run/qmp-agent/own/104.qmp")
    host.add_process(104, PROXMOX.format(reconnect="reconnect-ms=5000"), fds={10: server})
    host.add_process(90, "/usr/bin/python3 /usr/bin/qmp-agent run", fds={7: client})
    (vm,) = host.inspect([{"dial_per_poll": "/run/qemu-server/*.qmp", "own_monitor_dir": "/run/qmp-agent/own"}])
    assert vm.state == "watched"
    assert "  /run/qmp-agent/own/104.qmp: held by qmp-agent (pid 90)" in list(render_reports([vm]))


def test_an_existing_listen_address_is_used_without_a_config_change(host: FakeProcHost) -> None:
    add_managed_vms(host)
    (vm,) = host.inspect([{"listen": "/srv/agent.sock"}], "web")
    assert vm.steps[1].endswith(
        "--args '-chardev socket,id=qmp-agent,path=/srv/agent.sock,reconnect-ms=5000 -mon chardev=qmp-agent,mode=control'"
    )
    assert not any("listen:" in line for line in vm.steps)


def test_vms_with_the_same_uuid_are_named_whatever_the_pattern(host: FakeProcHost) -> None:
    line = "qemu-system-x86_64 -name {} -uuid 5f0c2c9e-1111-4111-8111-111111111111"
    for pid, name in ((7, "original"), (8, "clone"), (9, "clone2")):
        host.add_process(pid, line.format(name))
    host.add_process(10, "qemu-system-x86_64 -name first")  # without -uuid, two VMs are no clash
    host.add_process(11, "qemu-system-x86_64 -name second")
    (vm,) = host.inspect(pattern="original")
    assert vm.same_uuid == ("clone (pid 8)", "clone2 (pid 9)")
    assert "  UUID clash: clone (pid 8), clone2 (pid 9) run with the same UUID" in list(render_reports([vm]))
    assert {vm.same_uuid for vm in host.inspect(pattern="*st")} == {()}


@pytest.mark.parametrize(("source", "destination", "ticks"), [(8, 7, (40, 50)), (7, 8, (0, 0))], ids=["ticks", "pids"])
def test_a_migration_within_the_host_is_no_uuid_clash(
    host: FakeProcHost, source: int, destination: int, ticks: tuple[int, int]
) -> None:
    """The destination has started later. Its pid can be the lower one."""
    line = "qemu-system-x86_64 -name {} -uuid 5f0c2c9e-1111-4111-8111-111111111111"
    folders = (
        host.add_process(source, line.format("source")),
        host.add_process(destination, line.format("target") + " -incoming defer"),
    )
    for folder, started in zip(folders, ticks, strict=True):
        (folder / "stat").write_text(f"{folder.name} (qemu x) S {'1 ' * 18}{started} 0 0")
    reports = host.inspect()
    assert [report.same_uuid for report in reports] == [(), ()]
    assert reports[0].migration_ends == (f"target (pid {destination})",)
    assert f"  migration within this host: source (pid {source}) has the same UUID" in list(render_reports(reports))


def test_an_older_process_with_incoming_and_a_newer_one_without_are_a_clash(host: FakeProcHost) -> None:
    line = "qemu-system-x86_64 -name {} -uuid 5f0c2c9e-1111-4111-8111-111111111111"
    host.add_process(7, line.format("migrated") + " -incoming defer")
    host.add_process(8, line.format("clone"))
    assert [report.same_uuid for report in host.inspect()] == [("migrated (pid 7)",), ("clone (pid 8)",)]


def test_existing_proxmox_args_are_kept(host: FakeProcHost) -> None:
    host.add_process(104, PROXMOX.format(reconnect="reconnect-ms=5000"))
    conf = host.proc.parent / "etc/pve/qemu-server/104.conf"
    conf.parent.mkdir(parents=True)
    added = "-chardev socket,id=qmp-agent,path=/run/qmp-agent/monitor.sock,reconnect-ms=5000 -mon chardev=qmp-agent,mode=control"
    for text, args in (
        ("cores: 2\n\n[before]\nargs: -old\n", added),
        ("args: -cpu 'host,hv_time'\ncores: 2\n", f"-cpu 'host,hv_time' {added}"),
    ):
        conf.write_text(text)
        (vm,) = host.inspect()
        assert vm.steps[:2] == (
            "as root on this node; then stop and start the VM:",
            f"  qm set 104 --args {shlex.quote(args)}",
        )


def test_qemu_before_9_2_gets_reconnect_in_seconds(host: FakeProcHost) -> None:
    host.add_process(104, PROXMOX.format(reconnect="reconnect=5"))
    command, *_, note = host.inspect()[0].steps[1:3]
    assert ",reconnect=5 " in command
    assert "9.2" in note


def test_vms_are_selected_by_name_uuid_or_pattern(host: FakeProcHost) -> None:
    add_managed_vms(host)
    assert [vm.name for vm in host.inspect(pattern="*.example.com")] == ["db.example.com", "ns.example.com"]
    assert [vm.name for vm in host.inspect(pattern="b56f06f0-*")] == ["default_vmi"]
    assert list(render_reports(host.inspect(pattern="none"))) == ["no matching QEMU process is visible to this user"]


@pytest.mark.parametrize(
    ("listens", "dial"),
    [(":4444", "127.0.0.1:4444"), ("0.0.0.0:4444", "127.0.0.1:4444"), ("192.0.2.7:4444", "192.0.2.7:4444")],
)
def test_a_free_tcp_monitor_is_dialled_at_a_reachable_address(host: FakeProcHost, listens: str, dial: str) -> None:
    host.add_process(
        7, f"qemu-system-x86_64 -name a -qmp tcp:{listens},server=on,wait=off", fds={5: host.add_listener("tcp:4444")}
    )
    assert host.inspect()[0].steps[-1] == f"    - dial: tcp:{dial}"
    assert host.inspect([{"dial": f"tcp:{dial}"}])[0].state == "configured"


def test_without_access_to_descriptors_doctor_refers_to_root(host: FakeProcHost) -> None:
    add_managed_vms(host)
    for pid in (104, 400):
        folder = host.proc / str(pid) / "fd"
        for link in folder.iterdir():
            link.unlink()
        folder.rmdir()
    text = "\n".join(render_reports(host.inspect(pattern="ovirt-vm")))
    assert "descriptor 33: holder unknown; run doctor as root to see the holder" in text
    host.table |= {900: SocketTableEntry(ESTABLISHED, "/run/qemu-server/104.qmp", 901)}
    assert "/104.qmp: held by an unknown process" in "\n".join(render_reports(host.inspect(pattern="web")))


def test_a_config_file_is_read_in_the_processs_view_and_only_if_regular(host: FakeProcHost) -> None:
    folder = host.add_process(7, "qemu-system-x86_64 -readconfig fifo -readconfig /etc/qemu.conf")
    assert readconfig_paths(["qemu", "-readconfig", "/etc/qemu.conf", "-S"]) == ["/etc/qemu.conf"]
    (folder / "cwd").mkdir()
    os.mkfifo(folder / "cwd" / "fifo")  # opening it would block
    (folder / "root" / "etc").mkdir(parents=True)
    (folder / "root" / "etc" / "qemu.conf").write_text(
        '[chardev "c"]\nbackend = "socket"\npath = "/m"\n[mon "m"]\nchardev = "c"\n'
    )
    assert host.inspect()[0].monitors == ()  # without a mode, it is a human monitor
    with (folder / "root" / "etc" / "qemu.conf").open("a") as file:
        file.write('mode = "control"\nnonsense\n[broken\n')
    assert [monitor.address for monitor in host.inspect()[0].monitors] == ["/m"]


def test_a_command_line_cannot_inject_commands_or_terminal_escapes(host: FakeProcHost) -> None:
    line = (
        PROXMOX.format(reconnect="reconnect=5").replace("web,", "'$(reboot)\x1b[2J',").replace("/qemu-server/", "/x/")
    )
    host.add_process(
        7, line.replace("/var/run/x/104.pid", "/run/incus/qemu.pid").replace("-name '", "-name ").replace("',d", ",d")
    )
    text = "\n".join(render_reports(host.inspect()))
    assert "\x1b" not in text
    assert "incus config set '$(reboot)\ufffd[2J' raw.qemu=" in text


def test_the_deploy_files_match_doctors_steps(host: FakeProcHost) -> None:
    add_managed_vms(host)
    steps = {
        vm.manager: "\n".join(vm.steps).replace("104", "VMID").replace("db.example.com", "NAME")
        for vm in host.inspect(pattern="[dvw]*")
    }
    for manager, name in (("Proxmox", "proxmox"), ("Ganeti", "ganeti"), ("Incus", "incus")):
        path = DEPLOY / name / "agent.yaml"
        load_config(path)
        lines = [line.strip("# ") for line in path.read_text().splitlines()]
        commands = [line for line in lines if line.startswith(("qm set", "gnt-instance modify", "incus config set"))]
        assert commands
        for command in commands:
            assert command.replace("set NAME", "set v1") in steps[manager]
    load_config(DEPLOY / "libvirt" / "agent.yaml")
