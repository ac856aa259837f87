"""Errors of one guest agent's connection."""


class GuestAgentError(Exception):
    """Base class: a failure of one guest agent. It affects neither the VM's monitor nor other guests."""


class GuestChannelError(GuestAgentError):
    """The channel cannot be reached, or the connection ended."""


class GuestChannelDeniedError(GuestChannelError):
    """The agent may not use the channel: it lacks permission, or another process than the VM's QEMU listens there."""


class GuestChannelBusyError(GuestChannelError):
    """Another client uses the channel."""


class GuestFloodError(GuestChannelError):
    """The guest sent far more than the reply that was due. The connection has ended."""


class GuestTimeoutError(GuestAgentError):
    """The guest agent did not reply in time. The reply may still arrive; it is discarded by the next synchronization."""


class UnreadableGuestReplyError(GuestAgentError):
    """The reply to one command is not valid JSON, is malformed or exceeds the size limit."""


class GuestCommandRefusedError(GuestAgentError):
    """The command is not on the allow-list: a bug in the agent."""


class GuestCommandError(GuestAgentError):
    """The guest agent returned an error for a command.

    Attributes:
        error_class: QAPI's QapiErrorClass, such as GenericError or CommandNotFound.
        desc: a message for the operator. It differs between versions, so code must not parse it.
    """

    def __init__(self, error_class: str, desc: str) -> None:
        super().__init__(f"{error_class}: {desc}")
        self.error_class = error_class
        self.desc = desc
