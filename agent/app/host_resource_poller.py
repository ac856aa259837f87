"""Reads the host's CPU and memory statistics at an interval, adds the sums over its VMs, and publishes both. Sends no QMP command."""

import asyncio
import logging
import time
from collections.abc import Callable, Iterator

from agent.common.daemon_thread import BlockingCallWithTimeout
from agent.exposition.explain.contended_resource_finder import ResourceContentionFinder
from agent.exposition.host_sums import add_commitment_ratios, sum_vms
from agent.exposition.snapshot import Snapshot
from agent.host.host_resources import HostReading, read_host_resources
from agent.http.overview import run_in_steps
from agent.model.family import Sample
from agent.model.metrics.host_resources import HOST, HOST_HUGEPAGES
from agent.model.metrics.storage_pool import POOL
from agent.model.record import Record, Vm

_log = logging.getLogger("agent")

READ_SECONDS = 5.0
"""Timeout of one read of the host's files."""


class HostResourcePoller:
    """Publishes the host's CPU and memory statistics.

    Attributes:
        interval: seconds between two records.
    """

    def __init__(
        self,
        host: str,
        publish: Callable[[Record], str],
        snapshot: Snapshot,
        interval: float = 15.0,
        read: Callable[[], HostReading] = read_host_resources,
        read_seconds: float = READ_SECONDS,
    ) -> None:
        """Create a poller. Call `run` to start it.

        Args:
            host: name of this host.
            publish: publishes a record, and returns its id.
            snapshot: has the latest samples of all VMs, and stores the host's samples.
            interval: seconds between two records.
            read: reads the host's files, and may block.
            read_seconds: timeout of one read.
        """
        self.interval = interval
        self._vm = Vm(host, "", "")
        self._publish = publish
        self._snapshot = snapshot
        self._failed = False
        self._read = BlockingCallWithTimeout(read, read_seconds, "host resources")

    async def run(self) -> None:
        """Publish the records at each interval, until cancelled. Wait one interval first, so that the agent has polled VMs."""
        while True:
            await asyncio.sleep(self.interval)
            await self.poll()

    async def poll(self) -> None:
        """Read the host once, and publish its records. Remove the host's samples if its files cannot be read in time."""
        reading = await self._read_in_time()
        if reading is None:
            self._remove_samples(HOST_HUGEPAGES.name, set())
            self._remove_samples(HOST.name, set())
            return
        time_ns = time.time_ns()
        values = reading.values | sum_vms(self._snapshot.one_view_per_uuid())
        add_commitment_ratios(values)
        finder = ResourceContentionFinder(time_ns / 1e9, self._snapshot.host_samples.get(POOL.name, {}))
        await run_in_steps(self._add_vms(finder))
        if contention := finder.contended_resources():
            values["contention"] = contention
        samples = [Sample(HOST, (), values)]
        samples += [Sample(HOST_HUGEPAGES, (size,), pool) for size, pool in reading.hugepages.items()]
        self._remove_samples(HOST_HUGEPAGES.name, set(reading.hugepages))
        for sample in samples:
            self._snapshot.replace_host_sample(sample, time_ns / 1e9)
            self._publish(Record(sample.family.type, self._vm, sample.data, time_ns, sample.subject))

    def _add_vms(self, finder: ResourceContentionFinder) -> Iterator[None]:
        for vm, view in list(self._snapshot.one_view_per_uuid()):
            finder.add_vm(vm, view)
            yield

    def _remove_samples(self, family: str, present: set[str]) -> None:
        subjects = self._snapshot.host_samples.get(family, {})
        for labels in [labels for labels in subjects if not labels or labels[0] not in present]:
            del subjects[labels]

    async def _read_in_time(self) -> HostReading | None:
        try:
            reading = await self._read()
        except TimeoutError:
            self._log_failure("no answer in time")
            return None
        except Exception as error:  # noqa: BLE001 - a bug here must not end the agent
            self._log_failure(f"{type(error).__name__}: {error}")
            return None
        self._failed = False
        return reading

    def _log_failure(self, cause: str) -> None:
        """Log the first of several consecutive failures."""
        if not self._failed:
            _log.warning("cannot read the CPU and memory statistics of the host: %s", cause)
        self._failed = True
