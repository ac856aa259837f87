"""`qmp-agent doctor`: reports whether the agent can watch each VM on this host, and which change allows it."""
