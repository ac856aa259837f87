"""What was lost: counted by reason, logged at a limited rate, and told downstream when delivery goes on. Pure but for the log."""

import logging
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from enum import StrEnum
from typing import Any

import orjson

from agent.delivery.entry import Entry

_log = logging.getLogger(__name__)

LOG_SECONDS = 10.0
DROP_REPORT_TYPE = "qemu.agent.records_dropped"
"""The type of the records that tell of losses."""


class DropReason(StrEnum):
    """Why a record was not delivered."""

    QUEUE_FULL = "queue_full"
    """The lane's budget was full; the oldest went."""
    JOURNAL_UNAVAILABLE = "journal_unavailable"
    """The journal could not be written, and what memory may hold was full."""
    REJECTED = "rejected"
    """The sink will not have this one, ever; it lies with the dead letters where there is a journal."""
    CORRUPT = "corrupt"
    """What the journal gave back is not what it was given."""
    SHUTDOWN = "shutdown"
    """The agent stopped before it could be delivered, and it was not one that is journaled."""


@dataclass(slots=True)
class DropReport:
    """Records lost for one reason out of one lane, since it was last told.

    Attributes:
        reason, lane: which.
        records: how many.
        first_ns, last_ns: when the oldest and the newest of them were seen, nanoseconds since the epoch; 0 where that is lost too.
    """

    reason: str
    lane: str
    records: int = 0
    first_ns: int = 0
    last_ns: int = 0

    def add(self, records: int, first_ns: int, last_ns: int) -> None:
        """Count more."""
        self.records += records
        self.first_ns = min(self.first_ns or first_ns, first_ns)
        self.last_ns = max(self.last_ns, last_ns)

    def data(self) -> dict[str, Any]:
        """Return the data of the record that tells it."""
        data: dict[str, Any] = {"reason": self.reason, "queue": self.lane, "records": self.records}
        if self.first_ns:
            data |= {"first_timestamp_seconds": self.first_ns / 1e9, "last_timestamp_seconds": self.last_ns / 1e9}
        return data


class DropLedger:
    """All that was lost and not told yet."""

    def __init__(self) -> None:
        self.totals: dict[tuple[str, str], int] = {}
        """By lane and reason, since the start; never reset."""
        self._untold: dict[tuple[str, str], DropReport] = {}
        self._logged_at = float("-inf")
        self._unlogged = 0

    def __bool__(self) -> bool:
        return bool(self._untold)

    def add(self, lane: str, reason: DropReason, records: int, first_ns: int, last_ns: int, now: float) -> None:
        """Count a loss; `now` is any monotonic clock's seconds."""
        if not records:
            return
        key = (lane, reason.value)
        self.totals[key] = self.totals.get(key, 0) + records
        self._untold.setdefault(key, DropReport(reason.value, lane)).add(records, first_ns, last_ns)
        self._unlogged += records
        if now - self._logged_at >= LOG_SECONDS:
            _log.warning("%d records dropped, the last %d from %s: %s", self._unlogged, records, lane, reason.value)
            self._logged_at, self._unlogged = now, 0

    def add_entries(self, lane: str, reason: DropReason, entries: Iterable[Entry], now: float) -> None:
        """Count entries that are lost."""
        times = [entry.time_ns for entry in entries]
        if times:
            self.add(lane, reason, len(times), min(times), max(times), now)

    def untold(self) -> list[dict[str, Any]]:
        """Return what is not told yet, as JSON can say it."""
        return [asdict(loss) for loss in self._untold.values()]

    def restore(self, note: object) -> None:
        """Take what `untold` returned in an earlier run; anything else is ignored."""
        for item in note if isinstance(note, list) else ():
            try:
                self._again(DropReport(**item))
            except TypeError:
                continue

    def untell(self, bodies: Iterable[bytes]) -> None:
        """Take back what records told that are lost themselves, given their bodies; one that cannot be read is ignored."""
        for body in bodies:
            try:
                data = orjson.loads(body)["data"]
                first, last = (round(data.get(f"{end}_timestamp_seconds", 0) * 1e9) for end in ("first", "last"))
                self._again(DropReport(data["reason"], data["queue"], data["records"], first, last))
            except (ValueError, TypeError, KeyError, AttributeError):
                continue

    def _again(self, loss: DropReport) -> None:
        untold = self._untold.setdefault((loss.lane, loss.reason), DropReport(loss.reason, loss.lane))
        untold.add(loss.records, loss.first_ns, loss.last_ns)

    def tell(self) -> list[DropReport]:
        """Return what is not told yet, and count it as told."""
        losses, self._untold = list(self._untold.values()), {}
        return losses
