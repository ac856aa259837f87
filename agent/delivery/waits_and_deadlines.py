"""Waits and deadlines of delivery. The config cannot change these times, but tests shorten them."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class DeliveryWaitsAndDeadlines:
    """Waits and deadlines, in seconds.

    Attributes:
        linger: how long a sample waits for more samples, so that fewer and larger batches are sent.
        drop_report_interval: shortest time between two reports of dropped records to consumers.
        unready_after: how long a call to a sink or to the journal's disk may take before `/readyz` fails. Requests to Kafka time out
            earlier.
        first_retry: wait before the first retry of a sink that failed. The wait doubles with each retry, up to `max_retry`.
        max_retry: longest wait before a retry of a sink.
        journal_open: how long the start of the agent waits for the journal to open. The agent delivers from memory if the journal opens
            later.
        journal_retry: wait before the next attempt to use a journal that failed.
        journal_hang: how long a call to the journal's disk may take before alerts are sent without waiting for the journal.
        delete_delay: how long the deletion of delivered rows waits for new records, so that one transaction deletes the
            rows and writes the records.
        postpone_backlog_after: how long newer events and samples in memory wait for a backlog that cannot be read. Newer alerts wait
            `journal_hang` instead.
    """

    linger: float = 0.25
    drop_report_interval: float = 10.0
    unready_after: float = 30.0
    first_retry: float = 0.25
    max_retry: float = 15.0
    journal_open: float = 10.0
    journal_retry: float = 5.0
    journal_hang: float = 5.0
    delete_delay: float = 1.0
    postpone_backlog_after: float = 60.0
