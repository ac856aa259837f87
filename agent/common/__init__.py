"""Helpers without dependencies on other packages: errors, backoff, units, config value types."""
