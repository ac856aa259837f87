"""`qmp-agent doctor`: reports for each VM on this host whether the agent can watch the VM. If not, `doctor` reports what to change.

Start at `inspection`, which examines the host. `managers` has the changes for each VM manager, such as Proxmox.
"""
