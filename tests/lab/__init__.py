"""Parts for tests: real guests, Kafka brokers and Prometheus servers, and a scripted QEMU for what a real QEMU cannot be made to do."""
