"""The journal: a SQLite database that keeps records until the sink acknowledges them.

Start at `Journal` in `journal`. A `Journal` runs one transaction after the other in a thread. `database` has the calls of the thread.
"""
