"""Labels from libvirt's XML files: only the VM's own labels, sanitized. A missing or malformed file has no labels."""

from pathlib import Path

import pytest

from agent.common.safe_xml import MAX_XML_BYTES
from agent.host.libvirt_metadata import LabelsConfig, parse_libvirt_labels, read_libvirt_labels
from agent.model.record import Vm

VM = Vm("host1", "1a8b9e0c-3f52-4a61-9c1d-5b8a7c6d0e21", "instance-0000002a")

NOVA = f"""<domain type='kvm' id='3'>
  <name>{VM.name}</name>
  <uuid>{VM.uuid.upper()}</uuid>
  <title>web\u202e 1</title>
  <metadata>
    <nova:instance xmlns:nova="http://openstack.org/xmlns/libvirt/nova/1.1">
      <nova:package version="27.1.0"/>
      <nova:name>web-1</nova:name>
      <nova:flavor name="m1.small"><nova:memory>2048</nova:memory></nova:flavor>
      <nova:owner>
        <nova:user uuid="8c4f">alice</nova:user>
        <nova:project uuid="b17e">shop</nova:project>
      </nova:owner>
    </nova:instance>
  </metadata>
</domain>"""
OVIRT = f"""<domain type='kvm'><uuid>{VM.uuid}</uuid><metadata xmlns:ovirt-vm="http://ovirt.org/vm/1.0">
<ovirt-vm:vm><ovirt-vm:clusterVersion>4.7</ovirt-vm:clusterVersion></ovirt-vm:vm></metadata></domain>"""
EXPECTED = {
    "title": "web\ufffd 1",
    "nova_name": "web-1",
    "nova_flavor": "m1.small",
    "nova_project": "shop",
    "nova_project_id": "b17e",
}


def read_labels(*directories: Path, vm: Vm = VM) -> dict[str, str]:
    return read_libvirt_labels(vm, LabelsConfig(libvirt_xml_dirs=list(directories)))


def write_domain_file(directory: Path, text: str | bytes) -> Path:
    directory.mkdir(exist_ok=True)
    data = text.encode() if isinstance(text, str) else text
    (directory / f"{VM.name}.xml").write_bytes(data)
    return directory


@pytest.mark.parametrize("text", [NOVA, f"<domstatus state='running' pid='7'>{NOVA}</domstatus>"])
def test_novas_metadata_is_read_from_defined_and_running_vms(tmp_path: Path, text: str) -> None:
    assert read_labels(write_domain_file(tmp_path, text)) == EXPECTED


def test_ovirts_metadata_is_read(tmp_path: Path) -> None:
    assert read_labels(write_domain_file(tmp_path, OVIRT)) == {"ovirt_cluster_version": "4.7"}


def test_the_first_directory_with_the_vm_is_read(tmp_path: Path) -> None:
    other = write_domain_file(tmp_path / "a", NOVA.replace(VM.uuid.upper(), "another"))
    empty, own = tmp_path / "none", write_domain_file(tmp_path / "b", NOVA)
    assert read_labels(other, empty, own, write_domain_file(tmp_path / "c", OVIRT)) == EXPECTED
    assert read_labels(other) == read_labels(empty) == read_labels() == {}


ENTITIES = '<!DOCTYPE d [<!ENTITY a "aaaaaaaaaa"><!ENTITY b "&a;&a;&a;&a;">]>'


@pytest.mark.parametrize(
    "text",
    [
        "",
        "no XML",
        b"\xff\xfe\x00",
        NOVA[:200],
        "<domain/>",
        ENTITIES + NOVA.replace("shop", "&b;"),
        '<!DOCTYPE d [<!ENTITY x SYSTEM "file:///etc/passwd">]>' + NOVA.replace("shop", "&x;"),
        '<?xml version="1.0" encoding="no-such"?>' + NOVA,
        NOVA + " " * MAX_XML_BYTES,
        "<a>" * 100_000,
    ],
)
def test_a_malformed_file_gives_no_labels(tmp_path: Path, text: str | bytes) -> None:
    assert read_labels(write_domain_file(tmp_path, text)) == {}


@pytest.mark.parametrize("name", ["../x", "a/b", "a\0b"])
def test_a_vm_name_cannot_escape_the_directory(tmp_path: Path, name: str) -> None:
    (tmp_path / "x.xml").write_text(NOVA)
    assert read_labels(write_domain_file(tmp_path / "a", NOVA), vm=Vm("host1", VM.uuid, name)) == {}


def test_values_are_truncated_and_empty_ones_left_out(tmp_path: Path) -> None:
    long = NOVA.replace("shop", "x" * 1000).replace("web-1", "  ").replace("m1.small", "")
    labels = read_labels(write_domain_file(tmp_path, long))
    assert labels["nova_project"] == "x" * 128
    assert not {"nova_name", "nova_flavor"} & labels.keys()


KUBEVIRT = """<domain type="kvm"><name>shop_web-1</name>{metadata}</domain>"""
KUBEVIRT_METADATA = '<metadata><kubevirt xmlns="http://kubevirt.io"><uid>0c3b</uid></kubevirt></metadata>'


def test_a_vm_of_kubevirt_has_the_labels_by_which_kubernetes_knows_it() -> None:
    xml = KUBEVIRT.format(metadata=KUBEVIRT_METADATA)
    labels = parse_libvirt_labels(xml, LabelsConfig(), pod="virt-launcher-web-1-x2x", node="node-3")
    assert labels == {"namespace": "shop", "name": "web-1", "pod": "virt-launcher-web-1-x2x", "node": "node-3"}


def test_a_configured_label_takes_precedence_over_that_of_kubernetes() -> None:
    xml = KUBEVIRT.format(metadata=KUBEVIRT_METADATA + "<title>own</title>")
    labels = parse_libvirt_labels(xml, LabelsConfig(metadata={"name": "title"}), pod="p", node="n")
    assert labels == {"namespace": "shop", "name": "own", "pod": "p", "node": "n"}


@pytest.mark.parametrize("xml", [KUBEVIRT.format(metadata=""), "", "<domain", "<!DOCTYPE d><domain/>"])
def test_other_domains_and_unreadable_xml_have_no_labels_of_kubernetes(xml: str) -> None:
    assert parse_libvirt_labels(xml, LabelsConfig(), pod="p", node="n") == {}


def test_labels_of_a_connected_libvirt_are_those_of_its_files() -> None:
    assert parse_libvirt_labels(NOVA, LabelsConfig()) == EXPECTED
