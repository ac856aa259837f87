"""Wiring: builds the parts of the agent from the config and connects them.

Start at `agent`, whose `Agent` has every part as an attribute. `dispatcher` passes what the sessions report to the other parts. The package
may import every package except agent.cli and agent.consumer. Its code connects or observes several packages, except for
`io_stall_detector`, which finds disks that hang.
"""
