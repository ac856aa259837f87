"""Library for services that consume the agent's records from Kafka: drops duplicates, restores the order and reports gaps.

Start at `kafka_consumer`, or at `state_reader` for the current state of all hosts. The library imports only agent.model and aiokafka, so a
service needs no other part of the agent. docs/how-to/consumers.md is the guide.
"""
