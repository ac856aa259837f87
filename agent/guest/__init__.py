"""Sessions with guest agents: when each guest agent is queried, over which channel, and what happens if it does not respond."""
