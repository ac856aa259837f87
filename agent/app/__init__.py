"""Wiring: builds every part from the config and connects them."""
