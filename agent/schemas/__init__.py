"""JSON schemas of records, generated from the tables in agent/model and agent/alerts. Pure."""
