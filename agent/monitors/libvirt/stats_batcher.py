"""Fetches the statistics of many domains in one call to libvirt. A domain whose QEMU hangs delays the other domains only briefly."""

import asyncio
from typing import Any

from agent.monitors.libvirt import qmp_results_from_stats
from agent.monitors.libvirt.connection_pool import ConnectionPool
from agent.monitors.libvirt.libvirt_python import LibvirtConnection
from agent.monitors.libvirt.qmp_results_from_stats import Stats
from agent.qmp.errors import CommandError, NotConnectedError, QmpError, UnreadableReplyError

MAX_BATCH_DOMAINS = 32
"""Maximum number of domains in one call. libvirtd queries the QEMUs of these domains one after another."""

BATCH_TIMEOUT_SECONDS = 0.5
"""Timeout in seconds of a call for many domains. 32 domains take about 0.3 s (libvirt 9.0).

A longer call means that one of the domains hangs. The agent then makes a separate call for each domain. A hung domain delays another
domain by at most two timeouts.
"""

RETRY_SECONDS = 0.5
"""Seconds until the next call for a domain whose QEMU was busy with another command. No event reports when the QEMU is free."""


class _StatsRequest:
    """A request for a domain's statistics; `groups` are bits of VIR_DOMAIN_STATS_*, and `stats` completes with the statistics."""

    __slots__ = ("groups", "needs_own_call", "stats", "uuid")

    def __init__(self, uuid: str, groups: int, stats: "asyncio.Future[Stats]") -> None:
        self.uuid = uuid
        self.groups = groups
        self.stats = stats
        self.needs_own_call = False
        """True after a call for several domains has timed out or failed. The next call then has only this request."""


class StatsBatcher:
    """Fetches domains' statistics from one libvirtd. The first waiting caller makes one call to libvirt for all waiting callers."""

    def __init__(self, api: Any, pool: ConnectionPool) -> None:
        self._api = api
        self._pool = pool
        self._flags = api.VIR_CONNECT_GET_ALL_DOMAINS_STATS_NOWAIT | api.VIR_CONNECT_GET_ALL_DOMAINS_STATS_BACKING
        self._batch_lock = asyncio.Lock()
        self._requests: list[_StatsRequest] = []

    async def fetch(self, uuid: str, groups: int) -> Stats:
        """Return a domain's statistics. Retry while QEMU is busy with another command. The caller sets the deadline.

        Args:
            uuid: the domain's UUID.
            groups: the groups of statistics, as bits of VIR_DOMAIN_STATS_*.

        Raises:
            QmpError: the call failed; `ConnectionPool.call_with_connection` lists the errors.
        """
        while True:
            stats = await self._fetch_once(uuid, groups)
            if not stats.get(qmp_results_from_stats.QEMU_BUSY_KEY):
                return stats
            await asyncio.sleep(RETRY_SECONDS)

    async def _fetch_once(self, uuid: str, groups: int) -> Stats:
        request = _StatsRequest(uuid, groups, asyncio.get_running_loop().create_future())
        self._requests.append(request)
        try:
            while not request.stats.done():
                if request.needs_own_call:
                    await self._fetch_batch([request])
                    continue
                async with self._batch_lock:
                    if not (request.stats.done() or request.needs_own_call):
                        await self._fetch_batch(
                            [other for other in self._requests if not other.needs_own_call][:MAX_BATCH_DOMAINS]
                        )
            return request.stats.result()
        finally:
            if request in self._requests:
                self._requests.remove(request)

    async def _fetch_batch(self, requests: list[_StatsRequest]) -> None:
        """Make one call for these requests. If the call times out or libvirt returns an error, mark each request for its own call.

        A call that has timed out continues in its thread, and its result is ignored. Until the call returns, the hung domain is busy.
        The flag VIR_CONNECT_GET_ALL_DOMAINS_STATS_NOWAIT makes later calls skip a busy domain.
        """
        uuids = list({request.uuid for request in requests})
        groups = 0
        for request in requests:
            groups |= request.groups
        call = asyncio.ensure_future(
            self._pool.call_with_connection(lambda connection: self._call_libvirt(connection, uuids, groups))
        )
        try:
            if not (await asyncio.wait({call}, timeout=BATCH_TIMEOUT_SECONDS))[0]:
                for request in requests:
                    request.needs_own_call = True
                return
        finally:
            call.cancel()
        try:
            outcome: dict[str, Stats] | QmpError = call.result()
        except QmpError as error:
            outcome = error
        if isinstance(outcome, CommandError | UnreadableReplyError) and len(requests) > 1:
            for request in requests:
                request.needs_own_call = True  # separate calls show for which domain the call fails
            return
        for request in requests:
            self._complete_request(request, outcome)

    def _complete_request(self, request: _StatsRequest, outcome: dict[str, Stats] | QmpError) -> None:
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
        request.stats.exception()  # retrieve the exception, because asyncio logs an exception that no caller retrieves

    def _call_libvirt(self, connection: LibvirtConnection, uuids: list[str], groups: int) -> dict[str, Stats]:
        """Return the statistics of these domains by UUID. This method runs in a thread."""
        domains = connection.look_up_domains(uuids)
        results = connection.vir_connect().domainListGetStats(domains, groups, self._flags) if domains else []
        return {domain.UUIDString(): stats | self._busy_stats(domain, stats) for domain, stats in results}

    def _busy_stats(self, domain: Any, stats: Stats) -> Stats:
        """Return an entry that shows whether QEMU is busy, if block statistics are missing; otherwise an empty dict. Runs in a thread."""
        if qmp_results_from_stats.has_block_stats(stats):
            return {}
        try:
            return {qmp_results_from_stats.QEMU_BUSY_KEY: domain.controlInfo()[0] != self._api.VIR_DOMAIN_CONTROL_OK}
        except self._api.libvirtError:  # the domain has just ended
            return {}
