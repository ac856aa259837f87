"""Stores the latest samples of every VM. Computes Prometheus' text format, summaries and histories from the samples.

Start at `snapshot`. The agent updates the snapshot after each poll. A family is a group of metrics with the same labels, such as `block`.
A subject is what a family's labels identify, such as a disk.

The package does no I/O. The package may import the types of agent.session and lower packages, but not agent.alerts, agent.delivery or
agent.monitors.
"""
