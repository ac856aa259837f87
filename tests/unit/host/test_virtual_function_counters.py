"""Counters of virtual functions: shared by all VMs, refreshed at an interval, and absent where the kernel does not know them."""

import threading
from collections.abc import Sequence

import pytest

from agent.collectors import ALL_COLLECTORS, VmFacts
from agent.host.rtnetlink import NetlinkError, VirtualFunctionReading
from agent.host.types import VirtualFunctionCountersToRead, VirtualFunctionLocation, VmHostInterface
from agent.host.virtual_function_counters import (
    FRESH_INTERVALS,
    UNUSED_INTERVALS,
    VirtualFunctionCounters,
    query_virtual_functions,
)
from agent.model.family import Sample

NET = next(collector for collector in ALL_COLLECTORS if collector.name == "net")
COUNTERS = {"rx_bytes": 100, "tx_bytes": 200, "rx_packets": 1, "tx_packets": 2, "rx_dropped": 3, "tx_dropped": 4}


class Device:
    """A network device whose functions the test chooses, and the clock."""

    def __init__(self) -> None:
        self.functions: Sequence[VirtualFunctionReading] | Exception = [
            VirtualFunctionReading(3, "52:54:00:00:00:03", COUNTERS)
        ]
        self.queries: list[str] = []
        self.may_answer = threading.Event()
        self.may_answer.set()
        self.now = 1000.0
        self.counters = VirtualFunctionCounters(self._query, lambda: self.now)

    def _query(self, interface: str) -> Sequence[VirtualFunctionReading]:
        self.queries.append(interface)
        self.may_answer.wait(60)
        if isinstance(self.functions, Exception):
            raise self.functions
        return self.functions

    def poll(self, number: int = 3) -> list[Sample]:
        """Poll a VM with one virtual function, and return its samples."""
        values = {"kind": "vf", "host_address": "0000:01:10.3", "device": "hostdev0"}
        vf = VirtualFunctionLocation("ens1f0", number, "0000:01:10.3")
        interface = VmHostInterface(f"ens1f0v{number}", values, directions_swapped=False, vf=vf)
        (request,) = NET.files(VmFacts(interfaces=(interface,)))
        assert isinstance(request, VirtualFunctionCountersToRead)
        return list(NET.collect([self.counters.read_cached_counters(request)]))


async def test_a_sample_has_the_counters_from_the_guests_side() -> None:
    device = Device()
    assert device.poll() == []
    await device.counters.refresh()
    (sample,) = device.poll()
    assert (sample.family.name, sample.labels) == ("net", ("ens1f0v3",))
    assert sample.values == {
        "kind": "vf",
        "host_address": "0000:01:10.3",
        "device": "hostdev0",
        "mac": "52:54:00:00:00:03",
        "receive_bytes_total": 100,
        "receive_packets_total": 1,
        "receive_drops_total": 3,
        "transmit_bytes_total": 200,
        "transmit_packets_total": 2,
        "transmit_drops_total": 4,
    }


async def test_vms_on_one_device_share_a_query_and_an_unknown_function_has_no_sample() -> None:
    device = Device()
    for number in (3, 4):
        device.poll(number)
    await device.counters.refresh()
    assert device.queries == ["ens1f0"]
    assert (len(device.poll(3)), device.poll(4)) == (1, [])


async def test_a_driver_that_counts_nothing_has_no_samples_of_zeros() -> None:
    device = Device()
    device.poll()
    device.functions = [VirtualFunctionReading(3, "", dict.fromkeys(COUNTERS, 0))]
    await device.counters.refresh()
    assert device.poll() == []
    other = VirtualFunctionReading(4, "", COUNTERS)
    device.functions = [*device.functions, other]
    await device.counters.refresh()
    (sample,) = device.poll()
    assert sample.values["receive_bytes_total"] == 0


async def test_an_old_answer_is_not_used() -> None:
    device = Device()
    device.poll()
    await device.counters.refresh()
    device.now += FRESH_INTERVALS * 10.0 + 1
    assert device.poll() == []


async def test_a_device_that_no_vm_uses_is_no_longer_queried() -> None:
    device = Device()
    device.poll()
    device.now += UNUSED_INTERVALS * 10.0 + 1
    await device.counters.refresh()
    assert device.queries == []


@pytest.mark.parametrize("error", [OSError(19, "No such device"), NetlinkError("refused")])
async def test_a_failure_is_logged_once_and_ends(error: Exception, caplog: pytest.LogCaptureFixture) -> None:
    device = Device()
    device.poll()
    device.functions = error
    for _ in range(2):
        await device.counters.refresh()
    assert [record.getMessage() for record in caplog.records] == [
        f"ens1f0: cannot read the counters of the virtual functions: {error}"
    ]
    device.functions = [VirtualFunctionReading(3, "", COUNTERS)]
    await device.counters.refresh()
    assert len(device.poll()) == 1


def test_the_kernel_of_this_machine_answers_for_a_known_interface_only() -> None:
    assert query_virtual_functions("lo") == []
    with pytest.raises(OSError, match=r"no interface|No such device"):
        query_virtual_functions("qmpnone0")
