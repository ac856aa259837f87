"""What libvirt's files say of a VM for people: Nova's project and flavour, oVirt's cluster, a title. Blocks.

libvirt keeps a running VM's XML in /run/libvirt/qemu and a defined one's in /etc/libvirt/qemu, readable by root alone; where the agent may
not read them there are no labels of theirs. The metadata in them is whatever the manager was told by its users, and is treated so.
"""

import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from pydantic import AfterValidator, Field

from agent.common.config_types import Section
from agent.common.safe_xml import MAX_BYTES, parse_xml
from agent.model.record import Vm, sanitize

if TYPE_CHECKING:
    from xml.etree.ElementTree import Element

MAX_VALUE = 128
"""Characters of a label's value."""

TAKEN = frozenset({"vm", "vm_uuid", "qemu_version", "qemu_package", "monitor", "machine", "accelerator", "pid"})
"""Labels that qemu_vm_info has of itself."""


def _label(value: str) -> str:
    if not re.fullmatch(r"[a-zA-Z_][a-zA-Z0-9_]*", value) or value.startswith("__"):
        raise ValueError("should be a label's name: letters, digits and underscores, and no two of them in front")
    if value in TAKEN:
        raise ValueError(f"is a label that qemu_vm_info has already; those are {', '.join(sorted(TAKEN))}")
    return value


def _path(value: str) -> str:
    if not re.fullmatch(r"[\w.-]+(/[\w.-]+)*(@[\w.-]+)?", value):
        raise ValueError(
            "should be elements below <domain> and at most one attribute, such as metadata/instance/flavor@name"
        )
    return value


Label = Annotated[str, AfterValidator(_label)]
XmlPath = Annotated[str, AfterValidator(_path)]


class LabelsConfig(Section):
    """Labels of qemu_vm_info that are read out of libvirt's files, where the agent may read them."""

    libvirt_xml_dirs: list[Path] = [Path("/run/libvirt/qemu"), Path("/etc/libvirt/qemu")]
    """Folders with libvirt's XML, NAME.xml for each VM; the first that has it is read. An empty list reads none."""
    metadata: Annotated[dict[Label, XmlPath], Field(max_length=20)] = {
        "title": "title",
        "nova_name": "metadata/instance/name",
        "nova_flavor": "metadata/instance/flavor@name",
        "nova_project": "metadata/instance/owner/project",
        "nova_project_id": "metadata/instance/owner/project@uuid",
        "ovirt_cluster_version": "metadata/vm/clusterVersion",
    }
    """Where the value of each label stands: elements below <domain>, without namespaces, and `@` an attribute."""


def labels_of(vm: Vm, labels: LabelsConfig) -> dict[str, str]:
    """Return the labels of a VM that can be had; empty where there is no file of its, or none that can be read."""
    for folder in labels.libvirt_xml_dirs:
        domain = _domain(folder, vm)
        if domain is not None:
            found = {name: _value(domain, path) for name, path in labels.metadata.items()}
            return {
                name: sanitize(value.strip(), MAX_VALUE) for name, value in found.items() if value and value.strip()
            }
    return {}


def _domain(folder: Path, vm: Vm) -> "Element | None":
    """Return the <domain> of a VM, if it is this VM's and not another's of that name."""
    if "/" in vm.name or "\0" in vm.name:
        return None
    try:
        with (folder / f"{vm.name}.xml").open("rb") as file:
            root = parse_xml(file.read(MAX_BYTES + 1))
    except (OSError, ValueError):
        return None
    domain = root if root.tag == "domain" else root.find("domain")  # a running one's is inside <domstatus>
    if domain is None or (domain.findtext("uuid") or "").strip().lower() != vm.uuid:
        return None
    found: Element = domain
    return found


def _value(domain: "Element", path: str) -> str | None:
    elements, _, attribute = path.partition("@")
    element: Element | None = domain
    for name in elements.split("/"):
        element = next((child for child in element if _name(child) == name), None) if element is not None else None
    if element is None:
        return None
    return element.get(attribute) if attribute else element.text


def _name(element: "Element") -> str:
    return element.tag.rpartition("}")[2] if isinstance(element.tag, str) else ""
