"""What people and Prometheus see: the last samples (snapshot), the text format (exposition), HTTP (server), live records (live)."""
