"""Summary of a guest for the page and `qmp-agent top`."""

from agent.exposition.rates import PollPair
from agent.exposition.vm_summary import summarize_vm
from agent.model.family import Family, FieldValues
from agent.model.metrics.guest import (
    GUEST_ADDRESS,
    GUEST_AGENT,
    GUEST_AGENT_SESSION,
    GUEST_FILESYSTEM,
    GUEST_FREEZE,
    GUEST_OS,
)


def polls(*samples: tuple[Family, tuple[str, ...], FieldValues]) -> dict[str, PollPair]:
    pairs: dict[str, PollPair] = {}
    for family, labels, values in samples:
        pairs.setdefault(family.name, PollPair(1)).current[labels] = values
    return pairs


def test_a_vm_without_a_channel_has_no_guest() -> None:
    assert "guest" not in summarize_vm({})


def test_without_queries_only_the_channels_state_is_known() -> None:
    assert summarize_vm(polls((GUEST_AGENT, (), {"connected": True})))["guest"] == {"agent": "connected"}
    assert summarize_vm(polls((GUEST_AGENT, (), {"connected": False})))["guest"] == {"agent": "absent"}


def test_the_guests_values_are_summarized() -> None:
    guest = summarize_vm(
        polls(
            (GUEST_AGENT, (), {"connected": True}),
            (GUEST_AGENT_SESSION, (), {"state": "up", "version": "7.2"}),
            (GUEST_OS, (), {"hostname": "web-3", "name": "Debian", "kernel": "6.1"}),
            (GUEST_ADDRESS, ("eth0",), {"ipv4": "192.0.2.7", "addresses": []}),
            (GUEST_ADDRESS, ("eth1",), {"ipv6": "2001:db8::7", "addresses": []}),
            (GUEST_FREEZE, (), {"frozen": False}),
            (GUEST_FILESYSTEM, ("/", "vda1", "ext4"), {"used_bytes": 5, "size_bytes": 10, "available_bytes": 5}),
        )
    )["guest"]
    assert guest == {
        "agent": "up",
        "hostname": "web-3",
        "system": "Debian",
        "kernel": "6.1",
        "addresses": ["192.0.2.7", "2001:db8::7"],
        "filesystems": [{"mountpoint": "/", "device": "vda1", "type": "ext4", "used_bytes": 5, "size_bytes": 10}],
    }
