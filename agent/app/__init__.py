"""Wiring: builds the parts of the agent from the config and connects them.

Start at `agent`, whose `Agent` has every part as an attribute. `dispatcher` passes the reports of the sessions to the other parts.

The package may import every package except agent.cli and agent.consumer. Each module connects or observes several packages. The only
exception is `io_stall_detector`, which finds disks that hang.
"""
