"""The present state of a fleet, from the messages of the compacted topic of states. Pure."""

from collections import defaultdict
from collections.abc import Iterable
from typing import Final

from agent.consumer.stream_record import StreamRecord

VM_TYPE: Final = "qemu.state.vm"
ALERT_TYPE: Final = "qemu.state.alert"
HOST_TYPE: Final = "qemu.state.host"


class FleetState:
    """The last record of each VM on each host, of each firing alert, and of each host.

    Messages may be applied again, such as after a restart of the consumer: the result is the same once the last one is applied.
    """

    def __init__(self) -> None:
        self._records: dict[str, StreamRecord] = {}  # by key
        self._keys_of_vm: defaultdict[str, set[str]] = defaultdict(set)

    def __len__(self) -> int:
        return len(self._records)

    def apply(self, key: str, record: StreamRecord | None) -> None:
        """Apply the topic's next message. A tombstone, with None as record, deletes the key."""
        former = self._records.pop(key, None)
        if former is not None and former.type == VM_TYPE:
            keys = self._keys_of_vm[former.vm_uuid]
            keys.discard(key)
            if not keys:
                del self._keys_of_vm[former.vm_uuid]
        if record is not None:
            self._records[key] = record
            if record.type == VM_TYPE:
                self._keys_of_vm[record.vm_uuid].add(key)

    def vm(self, uuid: str) -> StreamRecord | None:
        """Return the state of a VM; None if no host has it.

        Two hosts have the VM while it migrates, and for a minute afterwards. Then the host on which it runs counts, else the newer record.
        """
        records = (self._records[key] for key in self._keys_of_vm.get(uuid, ()))
        return max(records, key=lambda record: (record.data.get("running") is True, record.time), default=None)

    def vms(self) -> Iterable[StreamRecord]:
        """Yield the state of each VM once."""
        return (record for record in map(self.vm, list(self._keys_of_vm)) if record is not None)

    def of_all_hosts(self) -> Iterable[StreamRecord]:
        """Yield the state of each VM on each host. Two hosts have a VM that migrates."""
        return self._of_type(VM_TYPE)

    def alerts(self) -> Iterable[StreamRecord]:
        """Yield the state of each firing alert; its data is that of the alert's record."""
        return self._of_type(ALERT_TYPE)

    def hosts(self) -> Iterable[StreamRecord]:
        """Yield the state of each host."""
        return self._of_type(HOST_TYPE)

    def _of_type(self, record_type: str) -> Iterable[StreamRecord]:
        return (record for record in list(self._records.values()) if record.type == record_type)
