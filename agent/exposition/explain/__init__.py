"""Explains why a VM is slow or hangs, from the latest samples, states and alerts. Pure.

Start at `cause_table`, which lists the causes, the most likely first. `evidence` has the data about a VM. The other modules have one
function per cause, which decides whether the cause applies.
"""
