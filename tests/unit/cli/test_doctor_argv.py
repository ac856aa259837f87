"""Parsing of QEMU's command line: its name, its UUID and its monitors."""

import pytest

from agent.cli.doctor.argv import CommandLine, MonitorSocket, parse_argv


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("qemu -name a -uuid U -qmp unix:/m,server,nowait", CommandLine("a", "U", (MonitorSocket("/m"),))),
        ("qemu -name guest=a,,b -qmp unix:/x,,y,server=on", CommandLine("a,b", "", (MonitorSocket("/x,y"),))),
        ("qemu -qmp-pretty tcp:127.0.0.1:44,server=on", CommandLine("", "", (MonitorSocket(tcp="127.0.0.1:44"),))),
        ("qemu -qmp tcp:hv:44", CommandLine("", "", (MonitorSocket(tcp="hv:44", connects=True),))),
        (
            "qemu --chardev socket,id=c,path=/m --mon c,mode=control",
            CommandLine("", "", (MonitorSocket("/m", connects=True),)),
        ),
        (
            "qemu -chardev socket,id=c,host=h,port=4,server=on -qmp chardev:c",
            CommandLine("", "", (MonitorSocket(tcp="h:4"),)),
        ),
        (
            "qemu -chardev socket,id=c,fd=x -mon chardev=c,mode=control",
            CommandLine("", "", (MonitorSocket(connects=True),)),
        ),
        (
            f"qemu -chardev socket,id=c,fd={'9' * 5000} -mon c,mode=control",
            CommandLine("", "", (MonitorSocket(connects=True),)),
        ),
        ("qemu -chardev socket,id=c,path=/m -mon chardev=c", CommandLine("", "", ())),  # a human monitor
        ("qemu -monitor unix:/m,server -mon chardev=missing,mode=control -qmp stdio", CommandLine("", "", ())),
        (
            "qemu -chardev socket,id=c,path=/m -object monitor-qmp,id=q,chardev=c",
            CommandLine("", "", (MonitorSocket("/m", connects=True),)),
        ),
        (
            'qemu -chardev socket,id=c,path=/m -object {"qom-type":"monitor-qmp","id":"q","chardev":"c","n":1}',
            CommandLine("", "", (MonitorSocket("/m", connects=True),)),
        ),
        ("qemu -object {broken -object monitor-hmp,id=h,chardev=c", CommandLine("", "", ())),
        ("qemu -smbios type=1,uuid=S -uuid U", CommandLine("", "U", ())),
        (
            'qemu -netdev vhost-user,id=n0,chardev=c -netdev {"type":"tap","fd":"3","id":"n1"}',
            CommandLine("", "", (), netdevs=(("n0", "vhost-user"), ("n1", "tap"))),
        ),
        ("qemu -name", CommandLine("", "", ())),
        ("qemu", CommandLine("", "", ())),
    ],
)
def test_command_render(line: str, expected: CommandLine) -> None:
    assert parse_argv(line.split()) == expected
