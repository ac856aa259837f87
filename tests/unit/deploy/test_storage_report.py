"""The program that reports thin pools, with the recorded output of real tools. tests/lab/storage_recorder.py records it."""

import ast
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, Final

import pytest

from agent.host.pools.storage_report import StorageReportFile
from deploy.storage import storage_report
from deploy.storage.storage_report import CommandError, parse_lvm_pools, parse_zfs_pools, run_command

ROOT: Final = Path(__file__).parents[3]
GOLDEN: Final = ROOT / "tests/golden/storage"
PROGRAM: Final = ROOT / "deploy/storage/storage_report.py"
LVM: Final = sorted(GOLDEN.glob("lvm-*.json"))
ZFS: Final = sorted(GOLDEN.glob("zfs-*.json"))
MIB: Final = 1 << 20


def recorded(path: Path) -> dict[str, str]:
    content: dict[str, str] = json.loads(path.read_text())
    return content


def by_name(pools: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    return {pool["name"]: pool for pool in pools}


@pytest.mark.parametrize("path", LVM, ids=lambda path: path.stem)
def test_the_figures_of_a_real_thin_pool_are_exact(path: Path) -> None:
    record = recorded(path)
    data = by_name(parse_lvm_pools(record["used.lvs"], record["used.dmsetup"]))["pve/data"]
    assert (data["size_bytes"], data["free_bytes"]) == (256 * MIB, 209 * MIB)  # 37 and 10 MiB are written
    assert data["metadata_size_bytes"] == 4 * MIB
    assert 3 * MIB < data["metadata_free_bytes"] < 4 * MIB
    assert data["state"] == "ok"
    assert data["volumes"] == [
        {
            "name": "pve/vm-100-disk-0",
            "size_bytes": 100 * MIB,
            "device": "253:4",
            "allocated_bytes": 37 * MIB,
        },
        {
            "name": "pve/vm-101-disk-0",
            "size_bytes": 2048 * MIB,
            "device": "253:5",
            "allocated_bytes": 10 * MIB,
        },
    ]


@pytest.mark.parametrize("path", LVM, ids=lambda path: path.stem)
def test_a_full_pool_with_an_odd_name_is_out_of_data_space(path: Path) -> None:
    record = recorded(path)
    pool = by_name(parse_lvm_pools(record["full.lvs"], record["full.dmsetup"]))["odd-vg_1.x+y/pool-a.b+c_d"]
    assert (pool["free_bytes"], pool["state"]) == (0, "out_of_data_space")
    assert [volume["name"] for volume in pool["volumes"]] == ["odd-vg_1.x+y/lv-with-hyphens"]


@pytest.mark.parametrize("path", LVM, ids=lambda path: path.stem)
def test_without_dmsetup_the_percentages_of_lvs_are_used(path: Path) -> None:
    record = recorded(path)
    pools = by_name(parse_lvm_pools(record["full.lvs"]))
    assert pools["pve/data"]["free_bytes"] == pytest.approx(209 * MIB, rel=0.001)
    assert pools["pve/data"]["volumes"][0]["allocated_bytes"] == 37 * MIB
    assert pools["odd-vg_1.x+y/pool-a.b+c_d"]["state"] == "out_of_data_space"


@pytest.mark.parametrize("path", LVM, ids=lambda path: path.stem)
def test_an_inactive_pool_is_left_out(path: Path) -> None:
    record = recorded(path)
    assert "odd-vg_1.x+y/off" not in by_name(parse_lvm_pools(record["used.lvs"], record["used.dmsetup"]))


@pytest.mark.parametrize("path", LVM, ids=lambda path: path.stem)
def test_units_and_a_log_from_lvm_conf_change_nothing(path: Path) -> None:
    record = recorded(path)
    assert parse_lvm_pools(record["odd-settings.lvs"]) == parse_lvm_pools(record["used.lvs"])


@pytest.mark.parametrize(
    ("target", "state"),
    [
        ("thin-pool 1 117/1024 8/1024 - rw discard_passdown error_if_no_space - 256", "ok"),
        ("thin-pool 1 117/1024 8/1024 - ro discard_passdown error_if_no_space - 256", "read_only"),
        ("thin-pool 1 117/1024 8/1024 - ro discard_passdown error_if_no_space needs_check 256", "needs_check"),
        ("thin-pool Fail", "failed"),
        ("thin-pool Error", "failed"),
    ],
)
def test_the_states_of_the_kernels_document_are_known(target: str, state: str) -> None:
    row = {"vg_name": "vg", "lv_name": "p", "segtype": "thin-pool", "lv_size": "1048576", "chunk_size": "1024"}
    text = json.dumps({"report": [{"lv": [row]}]})
    (pool,) = parse_lvm_pools(text, f"vg-p-tpool: 0 2048 {target}\n")
    assert pool["state"] == state
    assert ("free_bytes" in pool) is (state != "failed")


@pytest.mark.parametrize("text", ["", "[]", '{"report": {}}', "  WARNING: Failed to connect to lvmlockd"])
def test_output_that_is_no_report_is_an_error(text: str) -> None:
    with pytest.raises(ValueError, match=r"report|Expecting value"):
        parse_lvm_pools(text)


# --- ZFS ---


@pytest.fixture(params=ZFS, ids=lambda path: path.stem)
def tank(request: pytest.FixtureRequest) -> dict[str, Any]:
    """Return the pool `tank` of a real ZFS; its volumes by name."""
    record = recorded(request.param)
    pools = by_name(parse_zfs_pools(record["used.zpool"], record["used.zfs"], lambda name: f"230:{len(name)}"))
    return pools["tank"] | {"volumes": by_name(pools["tank"]["volumes"])}


def test_a_zfs_pool_has_the_size_and_free_space_that_its_file_systems_see(tank: dict[str, Any]) -> None:
    assert (tank["kind"], tank["state"]) == ("zfs", "ok")
    assert 800 * MIB < tank["size_bytes"] < 1024 * MIB
    assert tank["size_bytes"] - tank["free_bytes"] > (64 + 20 + 5) * MIB  # a reservation, a file and a volume


def test_a_quota_holds_for_all_file_systems_below_it(tank: dict[str, Any]) -> None:
    assert {name for name, volume in tank["volumes"].items() if volume.get("quota")} == {
        "tank/limited",
        "tank/limited/child",
        "tank/ref",
    }


def test_volumes_have_their_sizes_devices_and_reservations(tank: dict[str, Any]) -> None:
    sparse, full, odd = (tank["volumes"][name] for name in ("tank/sparse", "tank/full", "tank/vm images/disk 0"))
    assert (sparse["size_bytes"], sparse["device"], sparse["reserved"]) == (1024 * MIB, "230:11", False)
    assert 5 * MIB < sparse["allocated_bytes"] < 6 * MIB
    assert (full["size_bytes"], full["reserved"]) == (64 * MIB, True)
    assert (odd["size_bytes"], odd["reserved"]) == (64 * MIB, False)
    assert "device" not in tank["volumes"]["tank/vm"]
    assert tank["volumes"]["tank/vm"]["file_system"] == "tank/vm"


@pytest.mark.parametrize("path", ZFS, ids=lambda path: path.stem)
def test_a_degraded_zfs_pool_with_an_odd_name_has_its_state(path: Path) -> None:
    record = recorded(path)
    pool = by_name(parse_zfs_pools(record["used.zpool"], record["used.zfs"], lambda _: None))["odd:pool.1_x-y"]
    assert pool["state"] == "DEGRADED"


def test_lines_of_another_form_are_left_out() -> None:
    assert (
        parse_zfs_pools("tank\tONLINE\n", "no datasets available\ntank\tfilesystem\t-\t-\t1\t-\t0\t0\t0\n", str) == []
    )


# --- The program ---


@pytest.fixture
def tools(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a directory for programs that replace the tools of LVM and ZFS."""
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setattr(storage_report, "PATH", f"{folder}:{os.environ['PATH']}")
    monkeypatch.setattr(storage_report, "COMMAND_SECONDS", 20)
    return folder


def install(folder: Path, name: str, script: str) -> None:
    (folder / name).write_text(f"#!/bin/sh\n{script}\n")
    (folder / name).chmod(0o755)


def run_program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    output = tmp_path / "run/report.json"
    monkeypatch.setattr(sys, "argv", ["storage-report", "--output", str(output)])
    storage_report.main()
    return output


def test_the_agent_reads_what_the_program_writes(tools: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    record = recorded(LVM[0])
    for tool, section in (("lvs", "used.lvs"), ("dmsetup", "used.dmsetup")):
        (tools / section).write_text(record[section])
        install(tools, tool, f"cat {tools / section}")
    output = run_program(tmp_path, monkeypatch)
    report = StorageReportFile(output).load(time.time())
    assert {pool.name for pool in report.pools} == {"pve/data", "odd-vg_1.x+y/pool-a.b+c_d"}
    assert report.errors == []
    assert output.stat().st_mode & 0o777 == 0o644
    assert [path.name for path in output.parent.iterdir()] == ["report.json"]


def test_a_host_without_thin_pools_has_an_empty_report(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tools: Path
) -> None:
    monkeypatch.setattr(storage_report, "PATH", str(tools))
    report = StorageReportFile(run_program(tmp_path, monkeypatch)).load(time.time())
    assert (report.pools, report.errors) == ([], [])


def test_a_command_that_fails_is_reported_with_its_first_line(
    tools: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    install(tools, "lvs", 'echo "  Volume group is locked" >&2; exit 5')
    (error,) = StorageReportFile(run_program(tmp_path, monkeypatch)).load(time.time()).errors
    assert (error.kind, error.message, error.hangs) == ("lvm_thin", "lvs failed: Volume group is locked", False)


def test_a_command_that_hangs_is_abandoned_and_not_started_again(
    tools: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(storage_report, "COMMAND_SECONDS", 0.2)
    install(tools, "lvs", f"echo $$ >>{tmp_path}/started; exec sleep 1000")
    monkeypatch.setattr(subprocess.Popen, "kill", lambda _: None)  # a process in uninterruptible sleep survives SIGKILL
    with pytest.raises(CommandError, match="did not answer"):
        run_command(("lvs",), tmp_path)
    with pytest.raises(CommandError, match="still hangs") as error:
        run_command(("lvs",), tmp_path)
    assert error.value.hangs
    (pid,) = (tmp_path / "started").read_text().split()
    os.kill(int(pid), signal.SIGKILL)
    os.waitpid(int(pid), 0)
    install(tools, "lvs", "echo well")
    assert run_command(("lvs",), tmp_path) == "well\n"


def test_the_program_runs_with_the_python_of_older_distributions() -> None:
    ast.parse(PROGRAM.read_text(), feature_version=(3, 9))
    modules = {
        (node.module or "") if isinstance(node, ast.ImportFrom) else node.names[0].name
        for node in ast.walk(ast.parse(PROGRAM.read_text()))
        if isinstance(node, ast.Import | ast.ImportFrom)
    }
    assert {module.partition(".")[0] for module in modules} <= sys.stdlib_module_names | {"__future__"}
    assert shutil.which(str(PROGRAM)), "it has to be executable"
