"""Waits and deadlines of delivery that are not configurable; tests shorten them."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class DeliveryTimings:
    """Waits and deadlines, in seconds.

    Attributes:
        linger: how long a sample waits for others, so that they share a batch. Sending a batch costs more than making a sample.
        drop_report_interval: shortest time between reports of dropped records downstream.
        silence: how long a call to a sink or a disk may take before `/readyz` reports it. Kafka's requests time out earlier.
        first_retry: wait before the first retry of a sink that failed; it doubles up to `max_retry`.
        max_retry: longest wait before a retry of a sink.
        journal_open: how long the agent's start waits for the journal. After that the agent works while the journal still opens.
        journal_retry: wait before the next attempt to use a journal that failed.
        journal_hang: how long a call to the journal's disk may take before alerts no longer wait for it.
        delete_delay: how long deletions wait for a write, so that both share a transaction.
        read_patience: how long a journal may be unreadable before the agent leaves its backlog on disk until the next start.
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
