"""Watching one VM: who it is (identity), when to ask what (schedule), and the session that does it (watch)."""
