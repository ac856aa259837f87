"""Data about VMs on the host: processes, interfaces, block devices, sockets, libvirt's files. Only this package reads /proc and /sys.

Start at `process`, which reads the files of one process, or at `pools`, which finds the storage under images. The package may import
agent.model and agent.common.
"""
