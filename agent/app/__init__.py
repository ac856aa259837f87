"""Wiring: builds the parts of the agent from the config and connects them."""
