"""The latest samples of every VM, and what is computed from them: Prometheus' text format, summaries, histories, explanations.

Start at `snapshot`, which the agent updates after each poll; all other modules read it. The package does no I/O. It imports the types of
agent.session and the packages below them, but not agent.alerts, agent.delivery or agent.monitors.
"""
