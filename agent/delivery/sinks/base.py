"""The interface of a sink."""

from collections.abc import Sequence
from typing import Protocol, runtime_checkable

from agent.model.record import EncodedRecord


class SinkError(Exception):
    """A sink cannot deliver now. The caller reopens the sink and sends the batch again. The text is for the operator.

    Attributes:
        retry_now: whether the caller may retry immediately, because the next attempt sends the batch differently.
    """

    def __init__(self, text: str, *, retry_now: bool = False) -> None:
        super().__init__(text)
        self.retry_now = retry_now


class Sink(Protocol):
    """A destination of records. `SinkSupervisor` opens the sink, closes it after a failure, and retries."""

    name: str

    async def open(self) -> None:
        """Connect.

        Raises:
            SinkError: the destination is not reachable, or refuses the agent.
        """

    async def send(self, batch: Sequence[EncodedRecord]) -> Sequence[EncodedRecord]:
        """Deliver a batch.

        Returns:
            the records that the destination will never accept. All other records are delivered.

        Raises:
            SinkError: some records may not be delivered. Sending the batch again may deliver some records twice.
        """

    async def close(self) -> None:
        """Disconnect within the sink's own deadline. Never raises."""


@runtime_checkable
class SinkWithWarnings(Protocol):
    """A sink that can report warnings while the sink delivers records."""

    def warnings(self) -> list[str]:
        """Return problems that the operator should check, although the sink delivers records."""
