"""Exceptions of a connection to one monitor."""


class QmpError(Exception):
    """Base class of the errors of one monitor. An error of one monitor does not affect other monitors."""


class ProtocolError(QmpError):
    """The peer does not speak QMP, so the agent cannot use the connection any more."""


class PeerNotReadingError(QmpError):
    """The peer sends replies but does not read the agent's requests."""


class NotConnectedError(QmpError):
    """The agent cannot connect to the monitor, or the connection has ended."""


class ConnectPermissionError(NotConnectedError):
    """The agent's user has no permission to connect to the monitor."""


class PreemptedError(NotConnectedError):
    """The agent closed the connection, because a monitor of better priority for the same VM became available."""


class MigratedAwayError(NotConnectedError):
    """The VM migrated to another host or was saved to a file, according to its manager."""


class TransportLostError(NotConnectedError):
    """The VM's manager, such as libvirtd, is unreachable, so the state of the VM is unknown."""


class MonitorBusyError(NotConnectedError):
    """The monitor accepts connections but sends no greeting: another client holds the monitor."""


class StalledError(QmpError):
    """A reply is overdue. QEMU is still executing the command, so the agent sends no further in-band commands."""


class CommandNotAllowedError(QmpError):
    """The command is not on the allow-list: the config does not permit this change, or the agent has a bug."""


class UnexpectedReplyTypeError(QmpError):
    """The reply has a type that the command cannot return."""


class UnreadableReplyError(QmpError):
    """The reply to one command is not JSON, is malformed, or exceeds the size limit. The connection can still be used."""


class AmbiguousReplyError(UnreadableReplyError):
    """A command fails, because an unreadable message may be the reply to this command or to another command."""


class CommandError(QmpError):
    """QEMU returned an error for a command.

    Attributes:
        error_class: QAPI's QapiErrorClass: GenericError, CommandNotFound, DeviceNotActive, DeviceNotFound, KVMMissingCap.
        desc: a message for the operator. The text differs between QEMU versions, so code must not parse it.
    """

    def __init__(self, error_class: str, desc: str) -> None:
        super().__init__(f"{error_class}: {desc}")
        self.error_class = error_class
        self.desc = desc
