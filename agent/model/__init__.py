"""The data model: records, the metrics table and the event table.

Start at `record`, which defines a record and its encoding, and at `metrics`, which has the name, unit, type and help text of each
field. The package does no I/O, and imports no other package of the agent.
"""
