"""Sessions with monitors: discovery, supervision, ownership, and the polling and events of one VM.

Start at `session`, which serves one VM over one connection, and `supervisor`, which runs one session after the other. `shared_types`
has the interfaces to the rest of the agent. `scheduler` has the times of all polls, including the spacing of first polls. The package
may import agent.config and the packages below agent.config, but neither aiokafka nor sqlite3.
"""
