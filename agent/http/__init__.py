"""The agent's HTTP endpoint: /metrics, health checks, the web page, and live streams of records and of the host overview."""
