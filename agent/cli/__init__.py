"""The command `qmp-agent` and its subcommands."""
