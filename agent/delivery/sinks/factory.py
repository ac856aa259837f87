"""Builds the sink that the config names."""

from agent.delivery.sinks.base import Sink
from agent.delivery.sinks.base_config import SinkConfig
from agent.delivery.sinks.jsonl import JsonLinesConfig, JsonLinesSink
from agent.delivery.sinks.kafka.config import KafkaConfig


def build_sink(config: SinkConfig) -> Sink:
    """Return the sink for a config section.

    Raises:
        OSError: the path of a secret starts with `$CREDENTIALS_DIRECTORY`, and this variable is not set.
    """
    match config:
        case KafkaConfig():
            config.check_secret_paths_expand()
            # Import late: aiokafka takes 5 MiB of memory, which an agent without Kafka does not need.
            from agent.delivery.sinks.kafka.sink import KafkaSink  # noqa: PLC0415

            return KafkaSink(config)
        case JsonLinesConfig():
            return JsonLinesSink(config.path, config.max_size, config.max_files)
    raise TypeError(f"no sink for {type(config).__name__}")
