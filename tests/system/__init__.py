"""The agent as its user runs it, on real QEMUs, with a real Kafka and a real Prometheus."""
