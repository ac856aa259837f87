"""Sinks: where records are delivered, one file each."""
