"""Domains' statistics, asked for many domains at once and never waiting for one that hangs."""

import asyncio
from typing import Any

from agent.monitors.libvirt import qmp_translation
from agent.monitors.libvirt.connection_pool import ConnectionPool, LibvirtConnection
from agent.monitors.libvirt.qmp_translation import Stats
from agent.qmp.errors import NotConnectedError, QmpError

MAX_AT_ONCE = 32
"""Domains in one call; libvirtd asks their QEMUs one after the other."""

PATIENCE_SECONDS = 0.5
"""A call for many that takes longer than this has met one that hangs, and the others are not kept waiting: one for 32 domains takes some
0.3 s (libvirt 9.0). Whoever waits for such a call, and for the one after it, is asked for alone after twice this time."""

AGAIN_SECONDS = 0.5
"""How soon a domain is asked again that libvirt could not ask without waiting: no event tells when it can."""


class _StatsRequest:
    """What one domain's link waits for."""

    __slots__ = ("alone", "groups", "stats", "uuid")

    def __init__(self, uuid: str, groups: int, stats: "asyncio.Future[Stats]") -> None:
        self.uuid = uuid
        self.groups = groups
        self.stats = stats
        self.alone = False
        """Whether a call for it and others hung, so that it is asked for by itself now."""


class StatsBatcher:
    """One for each libvirtd. Whoever comes first asks for all who wait."""

    def __init__(self, api: Any, calls: ConnectionPool) -> None:
        self._api = api
        self._calls = calls
        self._flags = api.VIR_CONNECT_GET_ALL_DOMAINS_STATS_NOWAIT | api.VIR_CONNECT_GET_ALL_DOMAINS_STATS_BACKING
        self._turn = asyncio.Lock()
        self._wishes: list[_StatsRequest] = []

    async def of(self, uuid: str, groups: int) -> Stats:
        """Return a domain's statistics, as soon as libvirt can ask its QEMU. The caller sets the deadline.

        Args:
            uuid: the domain.
            groups: which, of libvirt's VIR_DOMAIN_STATS_*.

        Raises:
            QmpError: as Calls does.
        """
        while True:
            stats = await self._once(uuid, groups)
            if not stats.get(qmp_translation.OCCUPIED):
                return stats
            await asyncio.sleep(AGAIN_SECONDS)

    async def _once(self, uuid: str, groups: int) -> Stats:
        wish = _StatsRequest(uuid, groups, asyncio.get_running_loop().create_future())
        self._wishes.append(wish)
        try:
            while not wish.stats.done():
                if wish.alone:
                    await self._grant([wish])
                    continue
                async with self._turn:
                    if not (wish.stats.done() or wish.alone):
                        await self._grant([other for other in self._wishes if not other.alone][:MAX_AT_ONCE])
            return wish.stats.result()
        finally:
            if wish in self._wishes:
                self._wishes.remove(wish)

    async def _grant(self, wishes: list[_StatsRequest]) -> None:
        """Ask for these. If one of their QEMUs hangs, the call goes on without us, and each is asked for by itself.

        Asked again for the one that hangs, libvirt does not wait, since the first call still does.
        """
        uuids = list({wish.uuid for wish in wishes})
        groups = 0
        for wish in wishes:
            groups |= wish.groups
        call = asyncio.ensure_future(self._calls(lambda line: self._ask(line, uuids, groups)))
        try:
            if not (await asyncio.wait({call}, timeout=PATIENCE_SECONDS))[0]:
                for wish in wishes:
                    wish.alone = True
                return
        finally:
            call.cancel()
        try:
            told: dict[str, Stats] | QmpError = call.result()
        except QmpError as error:
            told = error
        for wish in wishes:
            if wish in self._wishes:
                self._wishes.remove(wish)
            if wish.stats.done():
                continue
            if isinstance(told, QmpError):
                wish.stats.set_exception(told)
            elif wish.uuid in told:
                wish.stats.set_result(told[wish.uuid])
            else:
                wish.stats.set_exception(NotConnectedError("libvirt knows the domain no more"))
            wish.stats.exception()  # looked at: its owner may have gone, and asyncio need not complain of that

    def _ask(self, line: LibvirtConnection, uuids: list[str], groups: int) -> dict[str, Stats]:
        """Ask libvirt. Runs in a thread."""
        domains = line.domains(uuids)
        told = line.connection().domainListGetStats(domains, groups, self._flags) if domains else []
        return {domain.UUIDString(): stats | self._occupied(domain, stats) for domain, stats in told}

    def _occupied(self, domain: Any, stats: Stats) -> Stats:
        """Tell a domain that could not be asked from one of whose disks there is nothing to say. Runs in a thread."""
        if qmp_translation.asked(stats):
            return {}
        try:
            return {qmp_translation.OCCUPIED: domain.controlInfo()[0] != self._api.VIR_DOMAIN_CONTROL_OK}
        except self._api.libvirtError:  # it has just ended
            return {}
