"""Sinks, the destinations of records: Kafka, and JSON lines.

Start at `base`, the interface of a sink. `factory` builds the sink that the config names. `supervisor` opens a sink again after a failure.
"""
