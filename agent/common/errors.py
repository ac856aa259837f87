"""What ends a command."""


class CommandFailedError(Exception):
    """A command cannot do what it is for; the text says why, for people."""
