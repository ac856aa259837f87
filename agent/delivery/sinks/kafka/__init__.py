"""The Apache Kafka sink, its config section and its connection diagnostics.

Start at `sink`, which sends a batch. `message` makes a Kafka message from a record.
"""
