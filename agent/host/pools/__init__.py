"""Pools: the storage under the images of VMs, one file for each kind of pool.

Start at `base`, the interface of a source of pools.
"""
