"""The agent's HTTP endpoint: /metrics, health checks, the web page, and live streams of records and of the host overview.

Start at `handlers`, which lists the paths; `server` listens and serves them. `page` has the files of the web page. The package imports
agent.exposition and the packages below it, but not agent.alerts, agent.delivery or agent.monitors. It reads the agent's state through
`AgentView`.
"""
