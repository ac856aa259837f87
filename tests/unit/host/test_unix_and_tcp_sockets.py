"""The sockets that the kernel lists, and the names of the programs that hold them."""

from pathlib import Path

from agent.host.unix_and_tcp_sockets import ESTABLISHED, SocketTableEntry, program_name, read_unix_and_tcp_sockets
from tests.lab.manager_hosts import LISTENS


def test_a_script_is_named_instead_of_its_interpreter() -> None:
    assert program_name(["/usr/sbin/libvirtd", "-d"]) == "libvirtd"
    assert program_name(["/usr/bin/python3", "-u", "/usr/bin/qmp-agent", "run"]) == "qmp-agent"
    assert program_name(["python3"]) == "python3"
    assert program_name([]) == "a process"


def test_tcp_sockets_are_listed_with_both_ends(tmp_path: Path) -> None:
    (tmp_path / "net").mkdir()
    header = "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode\n"
    row = "   0: {} {} {} 00000000:00000000 00:00000000 00000000     0        0 {} 1 0 100 0 0 10 0\n"
    local, remote = "0100007F:115C", "0100007F:C001"
    mapped = "0000000000000000FFFF00000100007F:C001"
    (tmp_path / "net" / "tcp").write_text(
        header + row.format("00000000:115C", "00000000:0000", "0A", 71) + row.format(local, remote, "01", 72)
    )
    (tmp_path / "net" / "tcp6").write_text(header + row.format(mapped, local, "01", 73))
    table = read_unix_and_tcp_sockets(tmp_path)
    assert table[71] == SocketTableEntry(LISTENS, "tcp:4444", 0, "tcp:0")
    assert table[72] == SocketTableEntry(ESTABLISHED, "tcp:4444", 73, "tcp:49153")
    assert table[73].peer == 72
