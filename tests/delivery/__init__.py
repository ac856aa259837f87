"""The way out: what waits, what is journaled, what a damaged disk does to it, and Kafka as it is."""
