"""Sessions with guest agents (qemu-ga): the schedule of queries, the channels to the guest agents, and retries after failures.

Start at `manager`, which runs one `session` for each VM. agent.qga has the protocol. agent.collectors.guest has the commands and reads the
replies. The package may import agent.monitors, and the packages that agent.monitors may import.
"""
