"""The agent's process: notifications to systemd, logging, garbage collection. Each module stands alone.

The package imports only agent.model.
"""
