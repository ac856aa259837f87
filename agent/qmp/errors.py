"""What can go wrong between us and one monitor."""


class QmpError(Exception):
    """Any failure of one monitor; never of the agent as a whole."""


class ProtocolError(QmpError):
    """The peer sent bytes that are not QMP, or more of them than we keep; the connection is of no more use."""


class NotConnectedError(QmpError):
    """The monitor cannot be reached, or the connection has ended."""


class DeniedError(NotConnectedError):
    """This user may not connect to the monitor."""


class PreemptedError(NotConnectedError):
    """We ended the connection because the VM is watched in a better way."""


class MigratedAwayError(NotConnectedError):
    """The VM lives on elsewhere, or in a file; its manager said so."""


class TransportLostError(NotConnectedError):
    """What lies between us and the VM, such as libvirtd, cannot be reached; of the VM itself nothing is known."""


class BusyError(NotConnectedError):
    """Something accepts connections but does not greet: another client holds this monitor."""


class StalledError(QmpError):
    """A reply is overdue. The command is still running inside QEMU, so nothing more may be asked in-band."""


class CommandRefusedError(QmpError):
    """We were about to send something that is not on the allow-list: a bug of ours or a config that did not allow it."""


class UnexpectedReplyError(QmpError):
    """QEMU answered, but with something that the command's answer cannot be."""


class CommandError(QmpError):
    """QEMU answered a command with an error.

    Attributes:
        error_class: QAPI's QapiErrorClass: GenericError, CommandNotFound, DeviceNotActive, DeviceNotFound, KVMMissingCap.
        desc: prose for people; QEMU changes it between versions, so code must not look inside.
    """

    def __init__(self, error_class: str, desc: str) -> None:
        super().__init__(f"{error_class}: {desc}")
        self.error_class = error_class
        self.desc = desc
