"""Counts dropped records by queue and reason, logs drops at a limited rate, and creates the reports for consumers. Pure except for logs."""

import logging
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from enum import StrEnum
from typing import Any

import orjson

from agent.model.record import EncodedRecord

_log = logging.getLogger(__name__)

LOG_INTERVAL_SECONDS = 10.0
"""Shortest time between two groups of log lines about dropped records. A group has a line for each queue and reason."""
DROP_REPORT_TYPE = "qemu.agent.records_dropped"
"""Type of the records that report drops to consumers."""


class DropReason(StrEnum):
    """Why a record was not delivered."""

    QUEUE_FULL = "queue_full"
    """The queue reached its limit, and the oldest records were dropped."""
    JOURNAL_UNAVAILABLE = "journal_unavailable"
    """The journal was not writable, and the queue's memory was full."""
    REJECTED = "rejected"
    """The sink will never accept the record. The journal, if configured, stores the record as a dead letter."""
    CORRUPT = "corrupt"
    """The record is missing from the journal, or its checksum does not match."""
    SHUTDOWN = "shutdown"
    """The agent stopped before the record was delivered or journaled."""


@dataclass(slots=True)
class DropReport:
    """Records of one queue that were dropped for one reason since the last report.

    Attributes:
        reason: why the records were dropped; a value of `DropReason`.
        queue: name of the queue.
        records: number of dropped records.
        first_ns: time of the oldest dropped record, nanoseconds since the epoch; 0 if unknown.
        last_ns: time of the newest dropped record, nanoseconds since the epoch; 0 if unknown.
    """

    reason: str
    queue: str
    records: int = 0
    first_ns: int = 0
    last_ns: int = 0

    def add(self, records: int, first_ns: int, last_ns: int) -> None:
        """Add dropped records. `DropLedger.add` describes the parameters."""
        self.records += records
        self.first_ns = min(self.first_ns or first_ns, first_ns)
        self.last_ns = max(self.last_ns, last_ns)

    def data(self) -> dict[str, Any]:
        """Return the `data` of the record that reports these drops."""
        data: dict[str, Any] = {"reason": self.reason, "queue": self.queue, "records": self.records}
        if self.first_ns:
            data |= {"first_timestamp_seconds": self.first_ns / 1e9, "last_timestamp_seconds": self.last_ns / 1e9}
        return data


class DropLedger:
    """All drops: totals since the start, and the drops that no record has reported to consumers yet."""

    def __init__(self) -> None:
        self.totals: dict[tuple[str, str], int] = {}
        """Dropped records by queue and reason, since the start; never reset."""
        self._unreported: dict[tuple[str, str], DropReport] = {}
        self._logged_at = float("-inf")
        self._unlogged: dict[tuple[str, str], int] = {}

    @property
    def has_unreported(self) -> bool:
        """True if there are drops that no record has reported yet."""
        return bool(self._unreported)

    def add(self, queue: str, reason: DropReason, records: int, first_ns: int, last_ns: int, now: float) -> None:
        """Count dropped records.

        Args:
            queue: name of the queue.
            reason: why the records were dropped.
            records: number of dropped records; 0 is ignored.
            first_ns: time of the oldest dropped record, nanoseconds since the epoch; 0 if unknown.
            last_ns: time of the newest dropped record, nanoseconds since the epoch; 0 if unknown.
            now: the present time of a monotonic clock in seconds; it limits the rate of log lines.
        """
        if not records:
            return
        key = (queue, reason.value)
        self.totals[key] = self.totals.get(key, 0) + records
        self._merge_unreported(DropReport(reason.value, queue, records, first_ns, last_ns))
        self._unlogged[key] = self._unlogged.get(key, 0) + records
        if now - self._logged_at >= LOG_INTERVAL_SECONDS:
            for (name, cause), count in self._unlogged.items():
                _log.warning("queue %s: dropped %d records: %s", name, count, cause)
            self._logged_at, self._unlogged = now, {}

    def add_records(self, queue: str, reason: DropReason, records: Iterable[EncodedRecord], now: float) -> None:
        """Count dropped records like `add`, with the times of the oldest and the newest of these records."""
        times = [record.time_ns for record in records]
        if times:
            self.add(queue, reason, len(times), min(times), max(times), now)

    def unreported(self) -> list[dict[str, Any]]:
        """Return the unreported drops as JSON values. The journal stores these values for the next run of the agent."""
        return [asdict(report) for report in self._unreported.values()]

    def restore_stored_drops(self, reports: object) -> None:
        """Add the unreported drops of an earlier run.

        Args:
            reports: the value that `unreported` returned in the earlier run. A value of another form is ignored.
        """
        for item in reports if isinstance(reports, list) else ():
            try:
                self._merge_unreported(DropReport(**item))
            except TypeError:
                continue

    def on_reports_dropped(self, bodies: Iterable[bytes]) -> None:
        """Mark drops as unreported again, because the drop reports about them were also dropped.

        Args:
            bodies: bodies of the drop reports that were dropped. A body that cannot be parsed is ignored.
        """
        for body in bodies:
            try:
                data = orjson.loads(body)["data"]
                first, last = (round(data.get(f"{end}_timestamp_seconds", 0) * 1e9) for end in ("first", "last"))
                self._merge_unreported(DropReport(data["reason"], data["queue"], data["records"], first, last))
            except (ValueError, TypeError, KeyError, AttributeError):
                continue

    def _merge_unreported(self, report: DropReport) -> None:
        merged = self._unreported.setdefault((report.queue, report.reason), DropReport(report.reason, report.queue))
        merged.add(report.records, report.first_ns, report.last_ns)

    def pop_unreported(self) -> list[DropReport]:
        """Return the unreported drops, and mark them as reported."""
        reports, self._unreported = list(self._unreported.values()), {}
        return reports
