"""The Apache Kafka sink, its config section and its connection diagnostics."""
