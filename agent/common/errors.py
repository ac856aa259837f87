"""The base class of errors that end a subcommand of `qmp-agent`."""


class SubcommandError(Exception):
    """A subcommand of `qmp-agent` failed. The error's text is the message for the user."""
