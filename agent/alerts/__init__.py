"""Fires and resolves alerts on events and samples, and sets the write thresholds by which QEMU reports a filling disk.

Start at `engine`, which passes each event and each poll to the modules that evaluate alerts. `catalogue` lists all alerts. The package
imports agent.collectors and the lower layers, but neither agent.delivery nor agent.monitors. Only `alertmanager` does I/O.
"""
