"""Delivery of records: queues hold records until a sink acknowledges them, and a journal keeps records across restarts.

Start at `pipeline`, which creates the queues and connects them to the journal and the sink. The package may import agent.model and
agent.common. Only agent.delivery imports sqlite3. Only agent.delivery and agent.consumer import aiokafka.
"""
