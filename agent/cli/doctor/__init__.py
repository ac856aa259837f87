"""`qmp-agent doctor`: reports whether and how each VM on this host can be watched, and what has to change for it."""
