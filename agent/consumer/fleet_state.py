"""The current state of all hosts, VMs and alerts, built from the messages of the compacted state topic. Pure."""

from collections import defaultdict
from collections.abc import Iterable
from typing import Final

from agent.consumer.stream_record import StreamRecord

VM_TYPE: Final = "qemu.state.vm"
ALERT_TYPE: Final = "qemu.state.alert"
HOST_TYPE: Final = "qemu.state.host"


class FleetState:
    """The latest state of each VM on each host, of each firing alert, and of each host.

    A consumer may apply messages twice, for example after a restart. The state is correct again after the newest message.
    """

    def __init__(self) -> None:
        self._records: dict[str, StreamRecord] = {}  # by key
        self._keys_by_vm: defaultdict[str, set[str]] = defaultdict(set)

    def __len__(self) -> int:
        return len(self._records)

    def apply_message(self, key: str, record: StreamRecord | None) -> None:
        """Update the state with the next message of the state topic.

        Args:
            key: the key of the message.
            record: the record in the message; None for a tombstone, which deletes the key.
        """
        previous = self._records.pop(key, None)
        if previous is not None and previous.type == VM_TYPE:
            keys = self._keys_by_vm[previous.vm_uuid]
            keys.discard(key)
            if not keys:
                del self._keys_by_vm[previous.vm_uuid]
        if record is not None:
            self._records[key] = record
            if record.type == VM_TYPE:
                self._keys_by_vm[record.vm_uuid].add(key)

    def vm(self, uuid: str) -> StreamRecord | None:
        """Return the state of a VM; None if no host reports the VM.

        Two hosts report a VM during its migration, and for a minute after the migration. The method returns the state
        from the host that runs the VM. If neither host runs the VM, the method returns the newer state.
        """
        records = (self._records[key] for key in self._keys_by_vm.get(uuid, ()))
        return max(records, key=lambda record: (record.data.get("running") is True, record.time), default=None)

    def vms(self) -> Iterable[StreamRecord]:
        """Yield one state for each VM. If two hosts report a VM, choose the state as in `vm`."""
        return (record for record in map(self.vm, list(self._keys_by_vm)) if record is not None)

    def vms_on_all_hosts(self) -> Iterable[StreamRecord]:
        """Yield the state of each VM from each host that reports the VM. During a migration, two hosts report a VM."""
        return self._states_of_type(VM_TYPE)

    def alerts(self) -> Iterable[StreamRecord]:
        """Yield the state of each firing alert. The state contains the data of the alert's record."""
        return self._states_of_type(ALERT_TYPE)

    def hosts(self) -> Iterable[StreamRecord]:
        """Yield the state of each host."""
        return self._states_of_type(HOST_TYPE)

    def _states_of_type(self, record_type: str) -> Iterable[StreamRecord]:
        return (record for record in list(self._records.values()) if record.type == record_type)
