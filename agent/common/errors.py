"""Errors that end a command."""


class CommandFailedError(Exception):
    """A command failed. Its text is the message for the user."""
