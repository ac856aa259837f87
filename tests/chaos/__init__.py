"""Chaos tests: no fault may lose or change an accepted event, or reorder the events of a VM."""
