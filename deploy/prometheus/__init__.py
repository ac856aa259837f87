"""Alerts, and series under other exporters' names."""
