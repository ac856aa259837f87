"""The interface of a sink."""

from collections.abc import Sequence
from typing import Protocol, runtime_checkable

from agent.model.record import EncodedRecord


class SinkError(Exception):
    """A sink cannot deliver now; closing it, opening it and sending the batch again may help. The text is for the operator.

    Attributes:
        retry_now: whether the retry need not wait.
    """

    def __init__(self, text: str, *, retry_now: bool = False) -> None:
        super().__init__(text)
        self.retry_now = retry_now


class Sink(Protocol):
    """A destination of records. `SinkSupervisor` opens it, closes it after a failure, and retries."""

    name: str

    async def open(self) -> None:
        """Connect.

        Raises:
            SinkError: the destination is not reachable, or refuses the agent.
        """

    async def send(self, batch: Sequence[EncodedRecord]) -> Sequence[EncodedRecord]:
        """Deliver a batch.

        Returns:
            the records that the destination rejects for themselves and will never accept; all others are delivered.

        Raises:
            SinkError: some records may not be delivered; sending the batch again may deliver some of them twice.
        """

    async def close(self) -> None:
        """Disconnect, within a deadline of the sink's own. Never raises."""


@runtime_checkable
class SinkWithWarnings(Protocol):
    """A sink that has something to report although it delivers."""

    def warnings(self) -> list[str]:
        """Return what the operator should look at when convenient."""
