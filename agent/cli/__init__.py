"""The command `qmp-agent` and its subcommands.

Start at `main`, which lists the subcommands. The package `commands` has a module for each subcommand except `version`. The package may
import every package except agent.consumer. No other package imports agent.cli.
"""
