"""JSON schemas of records, generated from the tables in agent/model and agent/alerts. Pure.

Start at `record`, which has the schema of a whole record. `data` has the schema of the member `data` of each record type. The package may
import agent.model, the alert catalogue, and the enumerations of agent.alerts, agent.delivery and agent.host.
"""
