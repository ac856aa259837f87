"""Stores the latest samples of every VM, and computes from the samples: Prometheus' text format, summaries, histories, explanations.

Start at `snapshot`, which the agent updates after each poll, and which all other modules read. A family is a group of metrics with the
same labels, such as `block`. A subject is what a family's labels identify, such as a disk.

The package does no I/O. Its imports are the types of agent.session and the packages below them, but not agent.alerts, agent.delivery or
agent.monitors.
"""
