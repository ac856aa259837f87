"""Fetches the statistics of many domains in one call, without waiting for a domain that hangs."""

import asyncio
from typing import Any

from agent.monitors.libvirt import qmp_translation
from agent.monitors.libvirt.client_library import LibvirtConnection
from agent.monitors.libvirt.connection_pool import ConnectionPool
from agent.monitors.libvirt.qmp_translation import Stats
from agent.qmp.errors import CommandError, NotConnectedError, QmpError, UnreadableReplyError

MAX_BATCH = 32
"""Maximum number of domains in one call. libvirtd queries their QEMUs one after the other."""

BATCH_SECONDS = 0.5
"""Timeout of a call for many domains. 32 domains take about 0.3 s (libvirt 9.0), so after this time a domain of the call hangs. The agent
then makes one call for each of its domains. A domain that waits for two such calls is delayed by at most twice this time."""

RETRY_SECONDS = 0.5
"""Wait before the next call for a domain whose QEMU was busy with another command. No event reports when the QEMU is free."""


class _StatsRequest:
    """A caller that waits for a domain's statistics."""

    __slots__ = ("alone", "groups", "stats", "uuid")

    def __init__(self, uuid: str, groups: int, stats: "asyncio.Future[Stats]") -> None:
        self.uuid = uuid
        self.groups = groups
        self.stats = stats
        self.alone = False
        """True after a call for several domains timed out or failed. The request then gets a call of its own."""


class StatsBatcher:
    """Fetches statistics from one libvirtd. The first waiting caller makes one call for all waiting callers."""

    def __init__(self, api: Any, pool: ConnectionPool) -> None:
        self._api = api
        self._pool = pool
        self._flags = api.VIR_CONNECT_GET_ALL_DOMAINS_STATS_NOWAIT | api.VIR_CONNECT_GET_ALL_DOMAINS_STATS_BACKING
        self._batch_lock = asyncio.Lock()
        self._requests: list[_StatsRequest] = []

    async def fetch(self, uuid: str, groups: int) -> Stats:
        """Return a domain's statistics; wait while libvirt cannot query its QEMU. There is no deadline: the caller sets one.

        Args:
            uuid: the domain.
            groups: bits of VIR_DOMAIN_STATS_*.

        Raises:
            QmpError: as ConnectionPool.run does.
        """
        while True:
            stats = await self._fetch_once(uuid, groups)
            if not stats.get(qmp_translation.QEMU_BUSY):
                return stats
            await asyncio.sleep(RETRY_SECONDS)

    async def _fetch_once(self, uuid: str, groups: int) -> Stats:
        request = _StatsRequest(uuid, groups, asyncio.get_running_loop().create_future())
        self._requests.append(request)
        try:
            while not request.stats.done():
                if request.alone:
                    await self._serve([request])
                    continue
                async with self._batch_lock:
                    if not (request.stats.done() or request.alone):
                        await self._serve([other for other in self._requests if not other.alone][:MAX_BATCH])
            return request.stats.result()
        finally:
            if request in self._requests:
                self._requests.remove(request)

    async def _serve(self, requests: list[_StatsRequest]) -> None:
        """Make one call for these requests. If it times out or is refused, each request gets a call of its own.

        A call that times out continues, and its result is ignored. It still occupies the domain that hangs, so libvirt does not wait
        for this domain in later calls.
        """
        uuids = list({request.uuid for request in requests})
        groups = 0
        for request in requests:
            groups |= request.groups
        call = asyncio.ensure_future(self._pool.run(lambda connection: self._query(connection, uuids, groups)))
        try:
            if not (await asyncio.wait({call}, timeout=BATCH_SECONDS))[0]:
                for request in requests:
                    request.alone = True
                return
        finally:
            call.cancel()
        try:
            outcome: dict[str, Stats] | QmpError = call.result()
        except QmpError as error:
            outcome = error
        if isinstance(outcome, CommandError | UnreadableReplyError) and len(requests) > 1:
            for request in requests:
                request.alone = True  # to find the domain for which the call fails
            return
        for request in requests:
            self._complete(request, outcome)

    def _complete(self, request: _StatsRequest, outcome: dict[str, Stats] | QmpError) -> None:
        if request in self._requests:
            self._requests.remove(request)
        if request.stats.done():
            return
        if isinstance(outcome, QmpError):
            request.stats.set_exception(outcome)
        elif request.uuid in outcome:
            request.stats.set_result(outcome[request.uuid])
        else:
            request.stats.set_exception(NotConnectedError("libvirt no longer has the domain"))
        request.stats.exception()  # marks it as retrieved, else asyncio logs it if the caller was cancelled

    def _query(self, connection: LibvirtConnection, uuids: list[str], groups: int) -> dict[str, Stats]:
        """Fetch the statistics of these domains. Runs in a thread."""
        domains = connection.domains(uuids)
        results = connection.handle().domainListGetStats(domains, groups, self._flags) if domains else []
        return {domain.UUIDString(): stats | self._busy_mark(domain, stats) for domain, stats in results}

    def _busy_mark(self, domain: Any, stats: Stats) -> Stats:
        """Return a mark if statistics are missing because the QEMU was busy, not because its disks have none. Runs in a thread."""
        if qmp_translation.has_block_stats(stats):
            return {}
        try:
            return {qmp_translation.QEMU_BUSY: domain.controlInfo()[0] != self._api.VIR_DOMAIN_CONTROL_OK}
        except self._api.libvirtError:  # the domain has just ended
            return {}
