"""The host's resources in the files of several kernels. A value that a kernel does not have is absent."""

from pathlib import Path

import pytest

from agent.host.host_resources import count_cpus_in_list, read_host_resources

MEMINFO = """\
MemTotal:       16316412 kB
MemFree:         1234568 kB
MemAvailable:    8123456 kB
Cached:          4000000 kB
SwapCached:           12 kB
SwapTotal:       2097148 kB
SwapFree:        2000000 kB
HugePages_Total:       4
Hugepagesize:       2048 kB
"""
DEBIAN_12 = {
    "proc/meminfo": MEMINFO,
    "proc/vmstat": "nr_free_pages 308642\npswpin 25\npswpout 300\nswap_ra 4\nzswpin 7\n",
    "proc/loadavg": "3.25 2.00 1.00 2/1032 27235\n",
    "proc/pressure/cpu": (
        "some avg10=1.00 avg60=0.50 avg300=0.10 total=12000000\nfull avg10=0.00 avg60=0.00 avg300=0.00 total=0\n"
    ),
    "proc/pressure/memory": (
        "some avg10=0.00 avg60=0.00 avg300=0.00 total=2500000\nfull avg10=0.00 avg60=0.00 avg300=0.00 total=500000\n"
    ),
    "proc/pressure/io": (
        "some avg10=0.00 avg60=0.00 avg300=0.00 total=4000000\nfull avg10=0.00 avg60=0.00 avg300=0.00 total=3000000\n"
    ),
    "sys/kernel/mm/ksm/run": "1\n",
    "sys/kernel/mm/ksm/pages_sharing": "1000\n",
    "sys/kernel/mm/ksm/pages_shared": "10\n",
    "sys/devices/system/cpu/online": "0-3,6\n",
    "sys/kernel/mm/hugepages/hugepages-2048kB/nr_hugepages": "4\n",
    "sys/kernel/mm/hugepages/hugepages-2048kB/free_hugepages": "3\n",
    "sys/kernel/mm/hugepages/hugepages-2048kB/resv_hugepages": "1\n",
    "sys/kernel/mm/hugepages/hugepages-1048576kB/nr_hugepages": "8\n",
    "sys/kernel/mm/hugepages/hugepages-1048576kB/free_hugepages": "0\n",
    "sys/kernel/mm/hugepages/hugepages-1048576kB/resv_hugepages": "0\n",
}
"""Linux 6.1, with pressure and KSM."""
PRESSURE = ("cpu_waiting", "memory_waiting", "memory_stalled", "io_waiting", "io_stalled")


def tree(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


def without(*beginnings: str) -> dict[str, str]:
    return {name: text for name, text in DEBIAN_12.items() if not name.startswith(beginnings)}


def test_all_figures_of_debian_12_are_in_base_units(tmp_path: Path) -> None:
    reading = read_host_resources(tree(tmp_path, DEBIAN_12))
    assert reading.values == {
        "memory_bytes": 16316412 * 1024,
        "memory_available_bytes": 8123456 * 1024,
        "swap_bytes": 2097148 * 1024,
        "swap_free_bytes": 2000000 * 1024,
        "swap_in_bytes_total": 25 * 4096,
        "swap_out_bytes_total": 300 * 4096,
        "pressure_cpu_waiting_seconds_total": 12.0,
        "pressure_memory_waiting_seconds_total": 2.5,
        "pressure_memory_stalled_seconds_total": 0.5,
        "pressure_io_waiting_seconds_total": 4.0,
        "pressure_io_stalled_seconds_total": 3.0,
        "ksm_running": True,
        "ksm_saved_bytes": 1000 * 4096,
        "load_1m": 3.25,
        "online_cpus": 5,
    }
    gib = 1 << 30
    assert reading.hugepages == {
        "1G": {"pool_bytes": 8 * gib, "free_bytes": 0, "reserved_bytes": 0},
        "2M": {"pool_bytes": 8 << 20, "free_bytes": 6 << 20, "reserved_bytes": 2 << 20},
    }


def test_rhel_9_without_pressure_has_no_pressure_and_all_else(tmp_path: Path) -> None:
    off = without("proc/pressure") | {"sys/kernel/mm/ksm/run": "0\n", "sys/kernel/mm/ksm/pages_sharing": "0\n"}
    values = read_host_resources(tree(tmp_path, off)).values
    assert not [name for name in values if name.startswith("pressure")]
    assert (values["ksm_running"], values["ksm_saved_bytes"], values["memory_bytes"]) == (False, 0, 16316412 * 1024)


def test_a_kernel_that_refuses_to_read_pressure_has_none(tmp_path: Path) -> None:
    root = tree(tmp_path, without("proc/pressure"))
    for name in ("cpu", "memory", "io"):
        (root / "proc/pressure" / name).mkdir(parents=True)  # the file exists, and its read fails
    assert not [name for name in read_host_resources(root).values if name.startswith("pressure")]


def test_a_kernel_without_ksm_and_huge_pages_has_no_such_values(tmp_path: Path) -> None:
    reading = read_host_resources(tree(tmp_path, without("sys/kernel/mm")))
    assert not [name for name in reading.values if name.startswith("ksm")]
    assert reading.hugepages == {}
    assert {f"pressure_{name}_seconds_total" for name in PRESSURE} <= reading.values.keys()


def test_pages_that_ksm_separates_again_do_not_count_as_merging(tmp_path: Path) -> None:
    root = tree(tmp_path, DEBIAN_12 | {"sys/kernel/mm/ksm/run": "2\n"})
    assert read_host_resources(root).values["ksm_running"] is False


def test_a_line_that_is_missing_costs_only_its_value(tmp_path: Path) -> None:
    text = MEMINFO.replace("MemAvailable:    8123456 kB\n", "").replace("SwapFree:        2000000 kB", "SwapFree: ? kB")
    values = read_host_resources(tree(tmp_path, DEBIAN_12 | {"proc/meminfo": text})).values
    assert (values["memory_bytes"], values["swap_bytes"]) == (16316412 * 1024, 2097148 * 1024)
    assert not values.keys() & {"memory_available_bytes", "swap_free_bytes"}


def test_a_file_longer_than_a_page_is_read_to_its_end(tmp_path: Path) -> None:
    text = "".join(f"counter_{number} 1\n" for number in range(1000)) + "pswpin 25\npswpout 300\n"
    assert read_host_resources(tree(tmp_path, {"proc/vmstat": text})).values["swap_in_bytes_total"] == 25 * 4096


def test_nothing_is_known_of_an_empty_tree(tmp_path: Path) -> None:
    assert read_host_resources(tmp_path) == ({}, {})


@pytest.mark.parametrize(
    ("text", "count"),
    [("0", 1), ("0-3", 4), ("0-3,8,10-11\n", 7), ("", 0), ("3-0", 0), ("0-", 0), ("a", 0), ("0-3;5", 0)],
)
def test_a_list_of_cpus_is_counted(text: str, count: int) -> None:
    assert count_cpus_in_list(text) == count
