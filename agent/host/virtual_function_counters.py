"""Traffic counters of SR-IOV virtual functions. The agent queries the kernel by rtnetlink at an interval, for all VMs at once.

A query is slow: the kernel holds its network lock, and some drivers query their device's firmware. So each query runs in a thread. Each
physical function has at most one query at a time. Polls of VMs use the last result.
"""

import asyncio
import logging
import socket
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial

from agent.common.daemon_thread import BlockingCallWithTimeout
from agent.host.rtnetlink import NetlinkError, VirtualFunctionReading, encode_link_request, parse_link_reply
from agent.host.types import KernelFileContents, VirtualFunctionCountersToRead

_log = logging.getLogger("agent")

QUERY_SECONDS = 5.0
"""Timeout of one query in seconds."""
MAX_REPLY_BYTES = 1 << 20
"""Maximum size of a reply in bytes. The kernel's list of virtual functions has at most 64 KiB."""
MAX_PHYSICAL_FUNCTIONS = 256
"""Maximum number of physical functions to query."""
FRESH_INTERVALS = 3
"""Number of intervals after which a result is too old to report."""
UNUSED_INTERVALS = 10
"""The agent stops querying a physical function that no poll has used for this number of intervals."""

Query = Callable[[str], Sequence[VirtualFunctionReading]]


@dataclass(slots=True)
class _PhysicalFunction:
    """A physical function.

    Attributes:
        call: queries its virtual functions.
        last_used_at: time of the last poll that used the physical function, by time.monotonic.
        answered_at: time of the last result, by time.monotonic.
        functions: its virtual functions by number, as of the last result.
        has_counters: whether any counter was ever more than 0. The kernel reports 0 for a driver without counters.
        failed: whether the last query failed.
    """

    call: BlockingCallWithTimeout[Sequence[VirtualFunctionReading]]
    last_used_at: float
    answered_at: float = 0.0
    functions: dict[int, VirtualFunctionReading] = field(default_factory=dict)
    has_counters: bool = False
    failed: bool = False


class VirtualFunctionCounters:
    """The last counters of all virtual functions that VMs use."""

    def __init__(self, query: Query | None = None, clock: Callable[[], float] = time.monotonic) -> None:
        """Create a cache without virtual functions. `read_cached_counters` adds the physical function of each requested function.

        Args:
            query: returns the virtual functions of a network interface. The call may block, and may raise OSError or NetlinkError.
            clock: returns a monotonic time in seconds.
        """
        self._query = query or query_virtual_functions
        self._clock = clock
        self._interval = 10.0
        self._physical_functions: dict[str, _PhysicalFunction] = {}

    def read_cached_counters(self, request: VirtualFunctionCountersToRead) -> KernelFileContents:
        """Return the last counters of a virtual function; None for each unknown counter. The next refresh includes this function."""
        now, vf = self._clock(), request.vf
        physical = self._physical_functions.get(vf.physical_interface)
        if physical is None:
            if len(self._physical_functions) < MAX_PHYSICAL_FUNCTIONS:
                call = BlockingCallWithTimeout(
                    partial(self._query, vf.physical_interface), QUERY_SECONDS, "VF counters"
                )
                self._physical_functions[vf.physical_interface] = _PhysicalFunction(call, now)
            return KernelFileContents(request, [None] * len(request.names))
        physical.last_used_at = now
        function = physical.functions.get(vf.number)
        if (
            function is None
            or not physical.has_counters
            or now - physical.answered_at > FRESH_INTERVALS * self._interval
        ):
            return KernelFileContents(request, [None] * len(request.names))
        texts = {name: b"%d" % count for name, count in function.counters.items()}
        texts |= {"mac": function.mac.encode()} if function.mac else {}
        return KernelFileContents(request, [texts.get(name) for name in request.names])

    async def run(self, interval: Callable[[], float]) -> None:
        """Refresh the counters at an interval, until cancelled.

        Args:
            interval: returns the interval in seconds.
        """
        while True:
            self._interval = interval()
            await asyncio.sleep(self._interval)
            await self.refresh()

    async def refresh(self) -> None:
        """Query all physical functions that recent polls have used, concurrently."""
        oldest = self._clock() - UNUSED_INTERVALS * self._interval
        self._physical_functions = {
            name: each for name, each in self._physical_functions.items() if each.last_used_at >= oldest
        }
        await asyncio.gather(
            *(self._refresh_physical_function(name, each) for name, each in self._physical_functions.items())
        )

    async def _refresh_physical_function(self, name: str, physical: _PhysicalFunction) -> None:
        try:
            functions = await physical.call()
        except (TimeoutError, OSError, NetlinkError) as error:
            if not physical.failed:
                cause = str(error) or f"no answer within {QUERY_SECONDS:g} s"
                _log.warning("%s: cannot read the counters of the virtual functions: %s", name, cause)
            physical.failed = True
            return
        physical.failed = False
        physical.answered_at = self._clock()
        physical.functions = {function.number: function for function in functions}
        physical.has_counters |= any(any(function.counters.values()) for function in functions)


def query_virtual_functions(interface: str) -> list[VirtualFunctionReading]:
    """Return the virtual functions of a network interface, from the kernel. The call may block.

    Raises:
        OSError: no interface has this name, or the kernel does not answer.
        NetlinkError: the kernel refused the request.
    """
    index = socket.if_nametoindex(interface)
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, socket.NETLINK_ROUTE) as connection:
        connection.settimeout(QUERY_SECONDS)
        connection.bind((0, 0))
        connection.sendto(encode_link_request(index), (0, 0))
        while True:
            reply, (sender, _groups) = connection.recvfrom(MAX_REPLY_BYTES)
            if sender == 0:  # 0 is the kernel; any other process can also send to a netlink socket
                return parse_link_reply(reply)
