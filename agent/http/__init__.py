"""The agent's HTTP endpoint: /metrics, health checks, the web page, and live streams of records and of the host overview.

Start at `handlers`, which maps paths to handlers, and at `server`, which serves them. `page` has the files of the web page. The package
imports agent.exposition and the packages below it, but not agent.alerts, agent.delivery or agent.monitors. The package reads the agent's
state through `EndpointSource`.
"""
