"""The config section of a sink."""

from typing import ClassVar

from agent.common.config_types import ConfigSection


class SinkConfig(ConfigSection):
    """Base class of the config sections for destinations of records. `agent.delivery.sinks.factory.build_sink` makes the sink."""

    journaled: ClassVar[bool] = True
    """True if events and alerts stay in the journal until the sink acknowledges them."""

    def topic_for(self, _record_type: str) -> str:
        """Return the topic of a record type; empty for a destination that has no topics."""
        return ""
