"""The tests; those with a real QEMU, Kafka or Prometheus get it from the lab."""
