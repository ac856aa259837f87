"""A fake of libvirt's Python library, for tests without a libvirtd."""

import threading
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

# ruff: noqa: N802, N815 - libvirt's names

CONNECTION_CLOSED = -1
REFUSED = 1


class ScriptedError(Exception):
    """A fake of libvirt.libvirtError."""

    def __init__(self, text: str = "the connection is closed", code: object = CONNECTION_CLOSED) -> None:
        super().__init__(text)
        self._code = code

    def get_error_message(self) -> str:
        return str(self)

    def get_error_code(self) -> object:
        return self._code


def reply_with(value: Any) -> Any:
    """Return a value, or raise it if it is an exception."""
    if isinstance(value, Exception):
        raise value
    return value


@dataclass(slots=True)
class ScriptedDomain:
    """A fake of libvirt.virDomain.

    Attributes:
        xml: the domain's XML, or an exception to raise.
        stats: the domain's statistics, or an exception to raise.
        replies: QEMU's replies as text, by command.
        thresholds: each write threshold that was set, with the image.
    """

    uuid: str
    xml: Any = "<domain/>"
    stats: Any = field(default_factory=dict)
    replies: dict[str, str] = field(default_factory=dict)
    thresholds: list[tuple[str, int]] = field(default_factory=list)

    def UUIDString(self) -> str:
        return self.uuid

    def ID(self) -> int:
        return 1

    def name(self) -> str:
        return self.uuid

    def XMLDesc(self, _flags: int) -> Any:
        return reply_with(self.xml)

    def setBlockThreshold(self, image: str, threshold: int) -> None:
        self.thresholds.append((image, threshold))

    def controlInfo(self) -> list[int]:
        return [0, 0, 0]


class ScriptedConnection:
    """A fake of libvirt.virConnect. It counts the calls that are made while another call is in progress."""

    def __init__(self, library: "ScriptedLibrary") -> None:
        self.up = True
        self.closed = False
        self._library = library
        self._used = threading.Lock()
        library.connections.append(self)

    def setKeepAlive(self, *_: int) -> None:
        self._call(lambda: None)

    def isAlive(self) -> bool:
        return self.up and not self.closed

    def close(self) -> None:
        self._call(lambda: None)
        self.closed = True

    def registerCloseCallback(self, *_: object) -> None:
        self._call(self._library.register)

    def domainEventRegisterAny(self, *_: object) -> None:
        self._call(lambda: None)

    unregisterCloseCallback = domainEventRegisterAny

    def listAllDomains(self, _flags: int) -> Any:
        return reply_with(self._library.listing())

    def lookupByUUIDString(self, uuid: str) -> ScriptedDomain:
        domain: ScriptedDomain = self._library.domains[uuid]
        return domain

    def domainListGetStats(
        self, domains: Iterable[ScriptedDomain], _groups: int, _flags: int
    ) -> list[tuple[ScriptedDomain, Any]]:
        return [(domain, reply_with(domain.stats)) for domain in domains]

    def use(self, wait: Callable[[], object]) -> int:
        """Simulate a call of the library that blocks until `wait` returns."""
        self._call(wait)
        if not self.up:
            raise ScriptedError
        return id(self)

    def _call(self, wait: Callable[[], object]) -> None:
        if not self._used.acquire(blocking=False):
            self._library.shared += 1
            return
        try:
            wait()
        finally:
            self._used.release()


class ScriptedLibrary(SimpleNamespace):
    """A fake of the module `libvirt`.

    Attributes:
        connections: all connections that were opened.
        shared: number of calls that were made while another call on the same connection was in progress.
        register: the function that registerCloseCallback calls.
        domains: the domains by UUID.
        listing: returns the result of listAllDomains, or an exception to raise.
    """

    libvirtError = ScriptedError

    def __init__(self) -> None:
        domains: dict[str, ScriptedDomain] = {}
        super().__init__(
            connections=[],
            shared=0,
            register=lambda: None,
            domains=domains,
            listing=lambda: list(domains.values()),
            VIR_DOMAIN_EVENT_ID_LIFECYCLE=0,
            VIR_DOMAIN_CONTROL_OK=0,
            VIR_DOMAIN_STATS_STATE=1,
            VIR_DOMAIN_STATS_BALLOON=8,
            VIR_DOMAIN_STATS_BLOCK=32,
            VIR_CONNECT_GET_ALL_DOMAINS_STATS_NOWAIT=1,
            VIR_CONNECT_GET_ALL_DOMAINS_STATS_BACKING=2,
            VIR_ERR_SYSTEM_ERROR=None,
            VIR_ERR_NO_DOMAIN=None,
        )
        for name in ("AUTH_FAILED", "AUTH_CANCELLED", "AUTH_UNAVAILABLE", "OPERATION_DENIED", "ACCESS_DENIED"):
            setattr(self, f"VIR_ERR_{name}", name)

    def open(self, uri: str) -> ScriptedConnection:  # noqa: ARG002 - a library of several daemons uses it
        return ScriptedConnection(self)

    def openReadOnly(self, uri: str) -> ScriptedConnection:
        return self.open(uri)

    @property
    def open_connections(self) -> list[ScriptedConnection]:
        return [connection for connection in self.connections if not connection.closed]


class ScriptedQemuLibrary:
    """A fake of the module `libvirt_qemu`."""

    def qemuMonitorEventRegister(self, *_: object) -> int:
        return 0

    def qemuMonitorCommand(self, domain: ScriptedDomain, request: str, _flags: int) -> str:
        return next(reply for command, reply in domain.replies.items() if f'"{command}"' in request)
