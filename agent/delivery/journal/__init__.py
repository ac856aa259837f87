"""The journal: a SQLite database that keeps records until the sink acknowledges them.

Start at `writer`, whose `Journal` runs one transaction after the other in a thread of its own; `database` is what runs in that thread.
"""
