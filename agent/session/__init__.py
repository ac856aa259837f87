"""Watching one VM: who it is (identity), when to ask what (schedule), the session that does it (session), again and again (watch)."""
