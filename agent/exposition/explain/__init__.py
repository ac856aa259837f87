"""Explains why a VM is slow or hangs, from the latest samples, states and alerts. Pure.

Start at `table`, which has a row for each cause, the most likely first. `evidence` has the data that a row reads. The other modules find
the causes.
"""
