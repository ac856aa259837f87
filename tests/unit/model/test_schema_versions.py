"""The attribute `dataschema`: an absolute URI with a name and a version for each record type."""

import pytest

from agent.model import schema_versions
from agent.model.schema_versions import dataschema, schema_uri


@pytest.mark.parametrize(
    ("record_type", "uri"),
    [
        ("qemu.sample.block", "urn:qmp-agent:qemu.sample.block:1"),
        ("qemu.vm.attached", "urn:qmp-agent:qemu.vm.attached:1"),
        ("qemu.alert.disk_full", "urn:qmp-agent:qemu.alert.disk_full:1"),
    ],
)
def test_each_type_has_a_schema_of_its_own(record_type: str, uri: str) -> None:
    assert dataschema(record_type) == uri


def test_all_events_share_a_schema_even_unknown_ones() -> None:
    assert dataschema("qemu.event.stop") == dataschema("qemu.event.never_heard_of") == "urn:qmp-agent:qemu.event:1"


def test_a_version_in_the_table_is_the_version_in_the_uri(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(schema_versions, "SCHEMA_VERSIONS", {"qemu.sample.block": 3})
    assert schema_uri("qemu.sample.block") == "urn:qmp-agent:qemu.sample.block:3"
    assert schema_uri("qemu.sample.net") == "urn:qmp-agent:qemu.sample.net:1"
