"""Schemas of records in a real schema registry."""
