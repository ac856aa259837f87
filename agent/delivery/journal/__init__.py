"""The journal: a SQLite database that keeps records until the sink acknowledges them."""
