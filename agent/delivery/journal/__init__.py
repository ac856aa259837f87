"""The journal: a SQLite database that keeps records until the sink acknowledges them.

Start at `Journal` in `journal`, which runs one transaction after the other in a thread. `database` has the thread's blocking calls.
"""
