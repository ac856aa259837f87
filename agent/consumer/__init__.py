"""A library for services that consume the agent's records from Kafka: it removes repetitions, restores order and reports gaps.

It imports only agent.model and aiokafka, so a service needs no other part of the agent. docs/consumers.md explains it.
"""
