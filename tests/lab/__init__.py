"""Parts for tests: real guests, Kafka brokers and Prometheus servers, and a scripted QEMU for behaviour that a real QEMU seldom shows."""
