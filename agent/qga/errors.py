"""Errors of a connection to a guest agent."""


class GuestAgentError(Exception):
    """Base class of the errors of one guest agent. An error affects neither the VM's QMP monitor nor other guests."""


class GuestChannelError(GuestAgentError):
    """The agent cannot connect to the channel, or the connection ended."""


class GuestChannelAccessDeniedError(GuestChannelError):
    """The agent may not use the channel: the agent lacks permission, or the process that listens at the channel is not the VM's QEMU."""


class GuestChannelBusyError(GuestChannelError):
    """Another client occupies the channel."""


class GuestFloodError(GuestChannelError):
    """The guest sent far more bytes than the expected reply. The agent has closed the connection."""


class GuestTimeoutError(GuestAgentError):
    """The guest agent did not reply in time. If the reply arrives later, the next synchronization discards the reply."""


class UnreadableGuestReplyError(GuestAgentError):
    """The reply to one command is not valid JSON, is malformed or exceeds the size limit."""


class GuestAgentCommandNotAllowedError(GuestAgentError):
    """The agent tried to send a command that is not on its allow-list, or a wrong synchronization number. This is a bug in the agent."""


class GuestAgentCommandError(GuestAgentError):
    """The guest agent returned an error for a command.

    Attributes:
        error_class: QAPI's QapiErrorClass, such as GenericError or CommandNotFound.
        desc: a message for the operator. The text differs between versions, so code must not parse it.
    """

    def __init__(self, error_class: str, desc: str) -> None:
        super().__init__(f"{error_class}: {desc}")
        self.error_class = error_class
        self.desc = desc
