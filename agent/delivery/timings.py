"""Waits and deadlines of delivery that are not configurable; tests shorten them."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class DeliveryTimings:
    """Waits and deadlines, in seconds.

    Attributes:
        linger: how long a sample waits for others; a batch for each poll costs more to send than to make.
        drop_report_interval: shortest time between reports of dropped records downstream.
        silence: how long a sink or a disk may leave a call unanswered before `/readyz` reports it. Kafka's requests time out earlier.
        first_retry: wait before the first retry of a sink that failed; it doubles up to `max_retry`.
        max_retry: longest wait before a retry of a sink.
        journal_open: how long a start waits for the journal. A journal that takes longer opens while the agent works.
        journal_retry: wait before the retry of a journal's disk that failed.
        journal_hang: how long a call to the journal's disk may take before alerts no longer wait for it.
        delete_delay: how long deletions wait for a write to share a transaction with.
        read_patience: how long a journal may be unreadable before its backlog is left to the next start.
    """

    linger: float = 0.25
    drop_report_interval: float = 10.0
    silence: float = 30.0
    first_retry: float = 0.25
    max_retry: float = 15.0
    journal_open: float = 10.0
    journal_retry: float = 5.0
    journal_hang: float = 5.0
    delete_delay: float = 1.0
    read_patience: float = 60.0
