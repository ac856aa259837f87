"""What the config says of a sink."""

from abc import abstractmethod
from typing import ClassVar

from agent.common.config_types import Section
from agent.delivery.sinks.base import Sink


class SinkConfig(Section):
    """A section of the config that says where records go."""

    journaled: ClassVar[bool] = True
    """Whether events and alerts lie in the journal until they are there."""

    @abstractmethod
    def build(self) -> Sink:
        """Return the sink.

        Raises:
            OSError: a secret's place cannot be told.
        """
