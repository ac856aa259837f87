"""Alerts: which events and samples fire and resolve them, and the write thresholds that detect a filling disk.

Start at `engine`, which passes each event and each poll to the alerts that it concerns; `catalogue` lists all alerts. The package imports
agent.collectors and the packages below it, but neither agent.delivery nor agent.monitors. Only `alertmanager` does I/O.
"""
