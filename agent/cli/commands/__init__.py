"""The subcommands of `qmp-agent`, one module each. `agent.cli.main` imports only the module of the subcommand that it runs.

Start at `run`, which runs the agent. A module has the function `execute`, which takes the parsed command line and returns the exit status.
"""
