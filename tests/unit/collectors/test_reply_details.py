"""Details of replies that records contain: limits, snapshots, encryption, memory, displays."""

from typing import Any

from agent.collectors import ALL_COLLECTORS
from agent.model.family import Sample

BY_NAME = {collector.name: collector for collector in ALL_COLLECTORS}


def collect(name: str, *replies: Any) -> list[Sample]:
    return list(BY_NAME[name].collect(replies))


def layer_of(image: dict[str, Any]) -> dict[str, Any]:
    """Return the values of the layer of a disk with this image."""
    nodes = [{"node-name": "n", "drv": image["format"], "file": "f", "image": image}]
    samples = collect("nodes", nodes, [{"qdev": "d", "node-name": "n"}])
    return next(sample.values for sample in samples if sample.labels == ("d", "format"))


def test_a_disk_has_the_duration_of_its_bursts_and_the_size_of_an_operation() -> None:
    inserted = {"node-name": "n", "iops_max_length": 60, "bps_rd_max_length": 5, "iops_size": 4096}
    (disk,) = collect("drives", [{"qdev": "d", "inserted": inserted}])
    assert {
        "throttle_operations_burst_seconds": 60,
        "throttle_read_bytes_burst_seconds": 5,
        "throttle_iops_size_bytes": 4096,
    }.items() <= disk.values.items()


def test_a_layer_has_its_last_internal_snapshots() -> None:
    snapshots = [
        {"id": str(n), "name": f"before-{n}", "date-sec": 1_700_000_000 + n, "date-nsec": 5, "vm-state-size": n}
        for n in range(40)
    ]
    values = layer_of({"format": "qcow2", "snapshots": snapshots})
    assert (values["internal_snapshots"], len(values["snapshots"])) == (40, 32)
    last = {"id": "39", "name": "before-39", "created_timestamp_seconds": 1_700_000_039, "vm_state_bytes": 39}
    assert values["snapshots"][-1] == last


LUKS = {
    "cipher-alg": "aes-256",
    "cipher-mode": "xts",
    "ivgen-alg": "plain64",
    "hash-alg": "sha256",
    "uuid": "5f0b",
    "slots": [{"active": True, "iters": 5, "key-offset": 4096}, {"active": False, "key-offset": 8192}],
}
DETAILS = {"cipher": "aes-256", "mode": "xts", "iv_generator": "plain64", "hash": "sha256", "active_slots": 1}


def test_an_encrypted_layer_has_the_details_of_luks() -> None:
    inside_qcow2 = {"type": "qcow2", "data": {"compat": "1.1", "encrypt": {"format": "luks", **LUKS}}}
    assert layer_of({"format": "qcow2", "format-specific": inside_qcow2})["encryption_details"] == DETAILS
    assert (
        layer_of({"format": "luks", "format-specific": {"type": "luks", "data": LUKS}})["encryption_details"] == DETAILS
    )
    assert "encryption_details" not in layer_of({"format": "raw", "format-specific": {"type": "file", "data": {}}})


def test_a_memory_device_has_its_address_and_its_slot() -> None:
    devices = [
        {"type": "dimm", "data": {"id": "dimm0", "addr": 1 << 32, "slot": 3, "size": 1}},
        {"type": "virtio-mem", "data": {"id": "mem0", "memaddr": 1 << 33, "size": 1}},
    ]
    _, dimm, virtio = collect("memory", {"base-memory": 1}, devices)
    assert (dimm.values["address"], dimm.values["slot"]) == (1 << 32, 3)
    assert (virtio.values["address"], "slot" in virtio.values) == (1 << 33, False)


def test_a_memory_backend_has_its_flags() -> None:
    backend = {"id": "ram", "size": 1, "merge": True, "dump": False, "reserve": True, "share": False, "prealloc": True}
    (inventory,) = collect("inventory", [], [], [backend, {"id": "old", "size": 1, "merge": True}])
    new, old = inventory.values["memory_backends"]
    assert (new["merge"], new["dump"], new["reserve"], new["prealloc"]) == (True, False, True, True)
    assert (old["merge"], "reserve" in old) == (True, False)


def test_a_spice_client_has_its_channels_and_whether_they_use_tls() -> None:
    channels = [
        {"host": "192.0.2.1", "port": "5", "family": "ipv4", "connection-id": 7, "channel-type": kind, "tls": kind == 1}
        for kind in (1, 2, 99)
    ]
    (spice,) = collect("spice", {"enabled": True, "channels": channels})
    client = {"host": "192.0.2.1", "port": "5", "channels": ["99", "display", "main"], "tls": False}
    assert spice.values["client_list"] == [client]


def test_a_vnc_display_has_its_websockets_and_the_authentication_of_each_address() -> None:
    addresses = [
        {"host": "::", "service": "5900", "auth": "vencrypt", "vencrypt": "x509-sasl", "websocket": False},
        {"host": "::", "service": "5700", "auth": "sasl", "websocket": True},
    ]
    clients = [{"host": "192.0.2.1", "service": "9", "websocket": True}]
    (vnc,) = collect("vnc", [{"id": "default", "auth": "vencrypt", "server": addresses, "clients": clients}])
    assert vnc.values["addresses"] == [
        {"host": "::", "port": "5900", "auth": "vencrypt", "vencrypt": "x509-sasl"},
        {"host": "::", "port": "5700", "auth": "sasl", "websocket": True},
    ]
    assert vnc.values["client_list"] == [{"host": "192.0.2.1", "port": "9", "websocket": True}]
