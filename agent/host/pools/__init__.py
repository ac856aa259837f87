"""Pools: the storage that holds the images of VMs, one file for each kind of pool.

Start at `base`, which has the interface `PoolSource`.
"""
