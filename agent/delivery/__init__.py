"""Delivery of records: queues hold them until a sink acknowledges them, and a journal keeps them across restarts."""
