"""The agent's process: notifications to systemd, logging, garbage collection."""
