"""The data model: records, the metrics table (field to name, unit, type, help) and the event table.

Start at `record`, which defines a record and its encoding, and at `metrics`, which has a row for each field. The package does no I/O,
and imports no other package of the agent.
"""
