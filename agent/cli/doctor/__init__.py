"""`qmp-agent doctor`: reports for each VM on this host whether the agent can watch it, and which change allows it."""
