"""The data model: records, the metrics table (field to name, unit, type, help) and the event table."""
