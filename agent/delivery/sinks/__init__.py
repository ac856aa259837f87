"""Sinks: where records are delivered, one file each.

Start at `base`, the interface of a sink; `factory` builds the one that the config names. `supervisor` opens a sink again after a failure.
"""
