"""`qmp-agent doctor`: every VM on this host, whether and how it can be watched, and what would have to change."""
