"""`qmp-agent doctor`: reports whether the agent can watch each VM on this host, and which change allows it.

Start at `inspection`, which examines the host; `managers` has the changes for each manager of VMs.
"""
