"""The journal: a SQLite database that keeps records until the sink acknowledges them.

Start at `writer`. Its `Journal` runs one transaction after the other in a separate thread. `database` has the calls that this thread makes.
"""
