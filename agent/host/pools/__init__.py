"""Storage pools, which hold the images of VMs. The package has one module for each kind of pool.

Start at `base`, which has the interface `PoolSource`.
"""
