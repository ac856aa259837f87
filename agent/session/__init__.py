"""Sessions with monitors: discovery, supervision, ownership, and the polling and events of one VM.

Start at `session`, which serves one VM over one connection. The module `supervisor` runs the sessions with one monitor, one after the
other. `shared_types` has the interfaces to the rest of the agent. `scheduler` computes the times of all polls, and spaces the first polls.

The package may import agent.config and the packages below agent.config, but neither aiokafka nor sqlite3.
"""
