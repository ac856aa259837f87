"""What doctor makes of command lines as managers write them, of a /proc made of files."""

import os
import shlex
from pathlib import Path
from typing import Final

import pytest

from agent.cli.doctor.argv import CommandLine, Socket, config_files, parse_argv
from agent.cli.doctor.report import lines
from agent.config.loader import load
from agent.host.permissions import User, agent_user, blocked_paths, describe_denial
from agent.host.sockets import ESTABLISHED, SocketEntry, is_agent, list_sockets, program_name
from tests.lab.golden_files import FOLDER, same_text
from tests.lab.manager_hosts import GANETI, INCUS, INCUS_CONF, LISTENS, PROXMOX, ROOT, Files

DEPLOY: Final = Path(__file__).parents[3] / "deploy"


@pytest.fixture
def files(tmp_path: Path) -> Files:
    return Files(tmp_path)


def managed(files: Files) -> None:
    """Make a VM of each manager."""
    accepted, called = files.connection("/run/qmeventd.sock")
    qmp = files.listener("/run/qemu-server/104.qmp")
    files.process(104, PROXMOX.format(reconnect="reconnect-ms=5000"), fds={9: qmp, 10: called})
    files.process(90, "/usr/sbin/qmeventd /var/run/qmeventd.sock", fds={5: accepted})

    ctrl = files.proc.parent / "run/ganeti/kvm-hypervisor/ctrl"
    ctrl.mkdir(parents=True)
    for pid, name in ((200, "db.example.com"), (201, "ns.example.com")):
        fds = {9: files.listener(f"{ctrl}/{name}.qmp"), 10: files.listener(f"{ctrl}/{name}.kvmd")}
        if name == "db.example.com":
            fds[11], client = files.connection(f"{ctrl}/{name}.kvmd")
            files.process(91, "/usr/sbin/ganeti-kvmd -f", fds={6: client})
        (ctrl / f"{name}.kvmd").touch()
        files.process(
            pid, GANETI.replace("db.example.com", name).replace("/var/run/ganeti", str(ctrl.parents[1])), fds=fds
        )

    accepted, called = files.connection("/run/incus/v1/qemu.monitor")
    folder = files.process(300, INCUS, uid=4242, fds={8: accepted})
    conf = folder / "root/run/incus/v1/qemu.conf"
    conf.parent.mkdir(parents=True)
    conf.write_text(INCUS_CONF)
    files.process(92, "/opt/incus/bin/incusd --group incus-admin", fds={21: called})

    system = "/var/lib/libvirt/qemu"
    files.libvirt(
        *(400, 93),
        name="ovirt-vm",
        binary="libexec/qemu-kvm",
        folder=system,
        uuid="36e1b0ac-febf-4924-9fe7-305a1589eb00",
        smbios="-smbios type=1,manufacturer=oVirt,product=RHEL,version=8.6,uuid=36e1b0ac-febf-4924-9fe7-305a1589eb00",
    )
    files.libvirt(
        *(500, 0),
        name="default_vmi",
        binary="libexec/qemu-kvm",
        folder="/var/run/kubevirt-private/libvirt/qemu/lib",
        uuid="b56f06f0-07e9-4fe5-8913-18a14e83a4d1",
        smbios="-smbios type=1,manufacturer=KubeVirt,product=None,uuid=b56f06f0-07e9-4fe5-8913-18a14e83a4d1",
    )
    files.libvirt(
        *(600, 0),
        name="laptop",
        binary="bin/qemu-system-x86_64",
        folder="/home/ada/.config/libvirt/qemu/lib",
        uuid="0c1d7c5c-6a53-4b2e-8f43-33de9c1f2a01",
        smbios="",
    )


def test_of_each_managers_vms_it_says_who_holds_them_and_the_exact_change(files: Files) -> None:
    managed(files)
    said = "\n".join(lines(files.vms())) + "\n"
    assert same_text("doctor-managers.txt", said.replace(str(files.proc.parent), "/var"))


def test_what_the_docs_show_is_what_it_says() -> None:
    page = (DEPLOY.parent / "docs" / "monitors.md").read_text()
    example = page[page.index("web  uuid") :].partition("```")[0]
    assert example in (FOLDER / "doctor-managers.txt").read_text()


def test_with_the_change_made_each_managers_vms_are_led_to(files: Files) -> None:
    managed(files)
    given = (
        "-chardev socket,id=qmp-agent,path=/run/qmp-agent/monitor.sock,reconnect=5 -mon chardev=qmp-agent,mode=control"
    )
    for pid in (104, 200, 300):  # as the advice is to start them
        path = files.proc / str(pid) / "cmdline"
        path.write_bytes(path.read_bytes() + "\0".join([*given.split(), ""]).encode())
    monitors: list[dict[str, object]] = [
        {"listen": "/run/qmp-agent/monitor.sock", "users": ["root", 4242]},
        {"dial": f"{files.proc.parent}/run/ganeti/kvm-hypervisor/ctrl/*.kvmd"},
        {"libvirt": "qemu:///system"},
        {"libvirt": "qemu+unix:///session?socket=/run/user/1000/libvirt/libvirt-sock"},
    ]
    ways = {vm.name: (vm.state, vm.way.partition(":")[0]) for vm in files.vms(monitors)}
    assert ways == {
        "web": ("configured", "listen"),
        "db.example.com": ("configured", "listen"),
        "ns.example.com": ("configured", "dial"),
        "v1": ("configured", "listen"),
        "ovirt-vm": ("configured", "libvirt"),
        "default_vmi": ("configured", "libvirt"),
        "laptop": ("configured", "libvirt"),
    }


def test_a_socket_that_is_visited_may_be_held_by_its_manager_at_the_moment(files: Files) -> None:
    folder = files.proc.parent / "qemu-server"
    folder.mkdir()
    (folder / "104.qmp").touch()
    accepted, called = files.connection(f"{folder}/104.qmp")
    line = PROXMOX.format(reconnect="reconnect=5").replace("/var/run/qemu-server", str(folder))
    files.process(104, line, fds={9: files.listener(f"{folder}/104.qmp"), 10: accepted})
    files.process(90, "/usr/bin/perl -T /usr/sbin/qm status 104", fds={7: called})
    (vm,) = files.vms([{"burst": f"{folder}/*.qmp"}])
    assert (vm.monitors[0].state, vm.monitors[0].holder) == ("held", "qm")
    assert (vm.state, vm.way) == ("configured", f"burst: {folder}/*.qmp")
    (vm,) = files.vms([{"dial": f"{folder}/*.qmp"}])
    assert vm.state == "unwatched"


def test_a_vm_whose_user_the_agent_does_not_let_in_is_told_with_the_entry_that_would(files: Files) -> None:
    managed(files)
    given = (
        "-chardev socket,id=qmp-agent,path=/run/qmp-agent/monitor.sock,reconnect=5 -mon chardev=qmp-agent,mode=control"
    )
    path = files.proc / "300" / "cmdline"
    path.write_bytes(path.read_bytes() + "\0".join([*given.split(), ""]).encode())
    (vm,) = files.vms([{"listen": "/run/qmp-agent/monitor.sock", "users": ["root", "daemon"]}], "v1")
    assert (vm.state, vm.monitors[0].missing) == ("unwatched", "the agent lets in no process of 4242")
    assert vm.change[1:] == (
        "  monitors:",
        "    - listen: /run/qmp-agent/monitor.sock",
        "      users: [root, daemon, 4242]",
    )
    for entry in ({"users": ["root", 4242]}, {"groups": ["root"]}):  # its group is 0
        (vm,) = files.vms([{"listen": "/run/qmp-agent/monitor.sock", **entry}], "v1")
        assert (vm.state, vm.monitors[0].missing) == ("configured", "")


def test_a_monitor_that_the_agent_had_added_is_one_that_it_watches_over(files: Files) -> None:
    accepted, called = files.connection("/run/qmp-agent/own/104.qmp")
    files.process(104, PROXMOX.format(reconnect="reconnect-ms=5000"), fds={10: accepted})
    files.process(90, "/usr/bin/python3 /usr/bin/qmp-agent run", fds={7: called})
    (vm,) = files.vms([{"burst": "/run/qemu-server/*.qmp", "hotplug_dir": "/run/qmp-agent/own"}])
    assert vm.state == "watched"
    assert "  /run/qmp-agent/own/104.qmp: held by qmp-agent (pid 90)" in list(lines([vm]))


def test_where_the_agent_listens_already_the_change_names_that_place_and_leaves_the_config_alone(files: Files) -> None:
    managed(files)
    (vm,) = files.vms([{"listen": "/srv/agent.sock"}], "web")
    assert vm.change[1].endswith(
        "--args '-chardev socket,id=qmp-agent,path=/srv/agent.sock,reconnect-ms=5000 -mon chardev=qmp-agent,mode=control'"
    )
    assert not any("listen:" in line for line in vm.change)


def test_arguments_that_proxmox_adds_already_are_kept(files: Files) -> None:
    files.process(104, PROXMOX.format(reconnect="reconnect-ms=5000"))
    conf = files.proc.parent / "etc/pve/qemu-server/104.conf"
    conf.parent.mkdir(parents=True)
    new = "-chardev socket,id=qmp-agent,path=/run/qmp-agent/monitor.sock,reconnect-ms=5000 -mon chardev=qmp-agent,mode=control"
    for text, args in (
        ("cores: 2\n\n[before]\nargs: -old\n", new),
        ("args: -cpu 'host,hv_time'\ncores: 2\n", f"-cpu 'host,hv_time' {new}"),
    ):
        conf.write_text(text)
        (vm,) = files.vms()
        assert vm.change[:2] == (
            "as root on this node; then stop and start the VM:",
            f"  qm set 104 --args {shlex.quote(args)}",
        )


def test_an_older_qemu_is_given_reconnect_in_seconds(files: Files) -> None:
    files.process(104, PROXMOX.format(reconnect="reconnect=5"))
    command, *_, note = files.vms()[0].change[1:3]
    assert ",reconnect=5 " in command
    assert "9.2" in note


def test_a_vm_is_chosen_by_name_uuid_or_pattern(files: Files) -> None:
    managed(files)
    assert [vm.name for vm in files.vms(wanted="*.example.com")] == ["db.example.com", "ns.example.com"]
    assert [vm.name for vm in files.vms(wanted="b56f06f0-*")] == ["default_vmi"]
    assert list(lines(files.vms(wanted="nobody"))) == ["no such QEMU runs here that this user can see"]


@pytest.mark.parametrize(
    ("listens", "dial"),
    [(":4444", "127.0.0.1:4444"), ("0.0.0.0:4444", "127.0.0.1:4444"), ("192.0.2.7:4444", "192.0.2.7:4444")],
)
def test_a_free_tcp_monitor_is_dialled_where_it_can_be(files: Files, listens: str, dial: str) -> None:
    files.process(
        7, f"qemu-system-x86_64 -name a -qmp tcp:{listens},server=on,wait=off", fds={5: files.listener("tcp:4444")}
    )
    assert files.vms()[0].change[-1] == f"    - dial: tcp:{dial}"
    assert files.vms([{"dial": f"tcp:{dial}"}])[0].state == "configured"


def test_where_descriptors_cannot_be_seen_it_says_that_root_could(files: Files) -> None:
    managed(files)
    for pid in (104, 400):
        folder = files.proc / str(pid) / "fd"
        for link in folder.iterdir():
            link.unlink()
        folder.rmdir()
    said = "\n".join(lines(files.vms(wanted="ovirt-vm")))
    assert "descriptor 33: who holds it cannot be told; root can see it" in said
    files.table |= {900: SocketEntry(ESTABLISHED, "/run/qemu-server/104.qmp", 901)}
    assert "/104.qmp: held by somebody" in "\n".join(lines(files.vms(wanted="web")))


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("qemu -name a -uuid U -qmp unix:/m,server,nowait", CommandLine("a", "U", (Socket("/m"),))),
        ("qemu -name guest=a,,b -qmp unix:/x,,y,server=on", CommandLine("a,b", "", (Socket("/x,y"),))),
        ("qemu -qmp-pretty tcp:127.0.0.1:44,server=on", CommandLine("", "", (Socket(tcp="127.0.0.1:44"),))),
        ("qemu -qmp tcp:hv:44", CommandLine("", "", (Socket(tcp="hv:44", calls=True),))),
        ("qemu --chardev socket,id=c,path=/m --mon c,mode=control", CommandLine("", "", (Socket("/m", calls=True),))),
        ("qemu -chardev socket,id=c,host=h,port=4,server=on -qmp chardev:c", CommandLine("", "", (Socket(tcp="h:4"),))),
        ("qemu -chardev socket,id=c,fd=x -mon chardev=c,mode=control", CommandLine("", "", (Socket(calls=True),))),
        (f"qemu -chardev socket,id=c,fd={'9' * 5000} -mon c,mode=control", CommandLine("", "", (Socket(calls=True),))),
        ("qemu -chardev socket,id=c,path=/m -mon chardev=c", CommandLine("", "", ())),  # for people
        ("qemu -monitor unix:/m,server -mon chardev=missing,mode=control -qmp stdio", CommandLine("", "", ())),
        (
            "qemu -chardev socket,id=c,path=/m -object monitor-qmp,id=q,chardev=c",
            CommandLine("", "", (Socket("/m", calls=True),)),
        ),
        (
            'qemu -chardev socket,id=c,path=/m -object {"qom-type":"monitor-qmp","id":"q","chardev":"c","n":1}',
            CommandLine("", "", (Socket("/m", calls=True),)),
        ),
        ("qemu -object {broken -object monitor-hmp,id=h,chardev=c", CommandLine("", "", ())),
        ("qemu -smbios type=1,uuid=S -uuid U", CommandLine("", "U", ())),
        ("qemu -name", CommandLine("", "", ())),
        ("qemu", CommandLine("", "", ())),
    ],
)
def test_command_lines(line: str, expected: CommandLine) -> None:
    assert parse_argv(line.split()) == expected


def test_a_config_file_is_read_as_the_process_sees_it_and_only_a_plain_one(files: Files) -> None:
    folder = files.process(7, "qemu-system-x86_64 -readconfig fifo -readconfig /etc/qemu.conf")
    assert config_files(["qemu", "-readconfig", "/etc/qemu.conf", "-S"]) == ["/etc/qemu.conf"]
    (folder / "cwd").mkdir()
    os.mkfifo(folder / "cwd" / "fifo")  # to open it would be to wait
    (folder / "root" / "etc").mkdir(parents=True)
    (folder / "root" / "etc" / "qemu.conf").write_text(
        '[chardev "c"]\nbackend = "socket"\npath = "/m"\n[mon "m"]\nchardev = "c"\n'
    )
    assert files.vms()[0].monitors == ()  # no mode: a monitor for people
    with (folder / "root" / "etc" / "qemu.conf").open("a") as file:
        file.write('mode = "control"\nnonsense\n[broken\n')
    assert [monitor.address for monitor in files.vms()[0].monitors] == ["/m"]


def test_nothing_of_a_command_line_can_run_or_redraw_anything_in_the_terminal_of_who_reads(files: Files) -> None:
    line = (
        PROXMOX.format(reconnect="reconnect=5").replace("web,", "'$(reboot)\x1b[2J',").replace("/qemu-server/", "/x/")
    )
    files.process(
        7, line.replace("/var/run/x/104.pid", "/run/incus/qemu.pid").replace("-name '", "-name ").replace("',d", ",d")
    )
    said = "\n".join(lines(files.vms()))
    assert "\x1b" not in said
    assert "incus config set '$(reboot)\ufffd[2J' raw.qemu=" in said


def test_programs_are_called_by_what_they_run() -> None:
    assert program_name(["/usr/sbin/libvirtd", "-d"]) == "libvirtd"
    assert program_name(["/usr/bin/python3", "-u", "/usr/bin/qmp-agent", "run"]) == "qmp-agent"
    assert program_name(["python3"]) == "python3"
    assert program_name([]) == "a process"


def test_the_running_agent_says_whose_permissions_count(files: Files) -> None:
    files.process(7, "/usr/bin/python3 /usr/bin/qmp-agent run --config /etc/qmp-agent/agent.yaml", uid=65534)
    files.process(8, "/usr/bin/python3 /usr/bin/qmp-agent doctor")
    files.process(9, "/usr/bin/python3 /usr/bin/qmp-agent demo", uid=65534)
    assert [is_agent(pid, files.proc) for pid in (7, 8, 9)] == [True, False, True]
    assert agent_user(proc=files.proc).name == "nobody"
    assert agent_user("root", files.proc) == User("root", 0, frozenset({0}))
    with pytest.raises(KeyError):
        agent_user("no-such-user", files.proc)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can ask for others")
def test_what_is_in_a_users_way_is_what_the_kernel_says(tmp_path: Path) -> None:
    nobody = User("nobody", 65534, frozenset({65534}))
    shut, socket = tmp_path / "shut", tmp_path / "shut" / "m"
    shut.mkdir(mode=0o700)
    socket.write_text("")
    socket.chmod(0o660)
    assert blocked_paths(str(socket), nobody)[-2:] == [shut, socket]
    assert blocked_paths(str(socket), ROOT) == []
    assert describe_denial(shut, nobody) == f"nobody may not enter {shut} (root:root 0700)"
    os.chown(socket, 0, 65534)
    assert blocked_paths(str(socket), nobody)[-1] == shut
    assert describe_denial(tmp_path / "gone", nobody).endswith("No such file or directory")
    assert (os.geteuid(), os.getegid()) == (0, 0)


def test_tcp_sockets_are_told_by_port_with_both_ends(tmp_path: Path) -> None:
    (tmp_path / "net").mkdir()
    head = "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode\n"
    row = "   0: {} {} {} 00000000:00000000 00:00000000 00000000     0        0 {} 1 0 100 0 0 10 0\n"
    here, there = "0100007F:115C", "0100007F:C001"
    mapped = "0000000000000000FFFF00000100007F:C001"
    (tmp_path / "net" / "tcp").write_text(
        head + row.format("00000000:115C", "00000000:0000", "0A", 71) + row.format(here, there, "01", 72)
    )
    (tmp_path / "net" / "tcp6").write_text(head + row.format(mapped, here, "01", 73))
    found = list_sockets(tmp_path)
    assert found[71] == SocketEntry(LISTENS, "tcp:4444", 0, "tcp:0")
    assert found[72] == SocketEntry(ESTABLISHED, "tcp:4444", 73, "tcp:49153")
    assert found[73].peer == 72


def test_what_deploy_says_for_each_manager_is_what_doctor_says_and_its_config_is_one(files: Files) -> None:
    managed(files)
    said = {
        vm.manager: "\n".join(vm.change).replace("104", "VMID").replace("db.example.com", "NAME")
        for vm in files.vms(wanted="[dvw]*")
    }
    for manager, name in (("Proxmox", "proxmox"), ("Ganeti", "ganeti"), ("Incus", "incus")):
        path = DEPLOY / name / "agent.yaml"
        load(path)
        lines = [line.strip("# ") for line in path.read_text().splitlines()]
        commands = [line for line in lines if line.startswith(("qm set", "gnt-instance modify", "incus config set"))]
        assert commands
        for command in commands:
            assert command.replace("set NAME", "set v1") in said[manager]
    load(DEPLOY / "libvirt" / "agent.yaml")
