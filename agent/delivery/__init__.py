"""Delivery of records: queues hold them until a sink has them, and a journal keeps them across restarts."""
