"""Sessions with monitors: discovery, supervision, ownership, and the polling and events of one VM."""
