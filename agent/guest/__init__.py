"""Sessions with guest agents: when each guest agent is queried, over which channel, and what happens if it does not respond.

Start at `manager`, which runs one `session` for each VM. agent.qga has the protocol. agent.collectors.guest has the commands and reads the
replies. The package may import agent.monitors and the packages below it.
"""
