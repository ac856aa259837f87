"""The lab: real guests, brokers and a Prometheus for the tests, and a scripted QEMU for what a real one cannot do."""
