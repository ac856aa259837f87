"""Labels of a VM from libvirt's XML, such as Nova's project and flavour, oVirt's cluster, KubeVirt's namespace, or a title.

An agent that is connected to libvirt gets the XML from libvirt. Any other agent reads libvirt's files, with blocking calls. The XML of
running VMs is in /run/libvirt/qemu, and the XML of defined VMs in /etc/libvirt/qemu. By default, only root may read these files.
The metadata is untrusted, because users of the VM's manager can set the metadata.
"""

import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from pydantic import AfterValidator, Field

from agent.common.config_types import ConfigSection
from agent.common.safe_xml import MAX_XML_BYTES, parse_xml
from agent.model.record import Vm, sanitize

if TYPE_CHECKING:
    from xml.etree.ElementTree import Element

MAX_LABEL_CHARACTERS = 128
"""Maximum length of a label's value in characters."""

RESERVED_LABELS = frozenset(
    {"vm", "vm_uuid", "qemu_version", "qemu_package", "monitor", "machine", "accelerator", "pid"}
)
"""Labels that qemu_vm_info always has."""


def _check_label_name(value: str) -> str:
    if not re.fullmatch(r"[a-zA-Z_][a-zA-Z0-9_]*", value) or value.startswith("__"):
        raise ValueError(
            "should be a label name: letters, digits and underscores, not starting with a digit or two underscores"
        )
    if value in RESERVED_LABELS:
        raise ValueError(f"is reserved: choose a label name other than {', '.join(sorted(RESERVED_LABELS))}")
    return value


def _check_xml_path(value: str) -> str:
    if not re.fullmatch(r"[\w.-]+(/[\w.-]+)*(@[\w.-]+)?", value):
        raise ValueError(
            "should be a path of elements below <domain> and at most one attribute, such as metadata/instance/flavor@name"
        )
    return value


Label = Annotated[str, AfterValidator(_check_label_name)]
XmlPath = Annotated[str, AfterValidator(_check_xml_path)]


class LabelsConfig(ConfigSection):
    """Labels of qemu_vm_info from libvirt's XML. Without a `libvirt` monitor, the agent reads libvirt's files, if it has permission."""

    libvirt_xml_dirs: list[Path] = [Path("/run/libvirt/qemu"), Path("/etc/libvirt/qemu")]
    """Directories with libvirt's XML files, NAME.xml for each VM, in the order of preference. An empty list disables these labels."""
    metadata: Annotated[dict[Label, XmlPath], Field(max_length=20)] = {
        "title": "title",
        "nova_name": "metadata/instance/name",
        "nova_flavor": "metadata/instance/flavor@name",
        "nova_project": "metadata/instance/owner/project",
        "nova_project_id": "metadata/instance/owner/project@uuid",
        "ovirt_cluster_version": "metadata/vm/clusterVersion",
    }
    """Path of each label's value: elements below <domain>, without namespaces, and optionally `@` and an attribute."""


def read_libvirt_labels(vm: Vm, config: LabelsConfig) -> dict[str, str]:
    """Return the VM's labels from libvirt's files; empty if this VM has no file that the agent can read."""
    for directory in config.libvirt_xml_dirs:
        domain = _read_domain(directory, vm)
        if domain is not None:
            return _labels_of_domain(domain, config)
    return {}


def parse_libvirt_labels(xml: str, config: LabelsConfig, *, pod: str = "", node: str = "") -> dict[str, str]:
    """Return the labels in the XML of a domain; empty if the XML cannot be parsed.

    A VM of KubeVirt also has Kubernetes' labels `namespace`, `name`, `pod` and `node`. KubeVirt names a domain NAMESPACE_NAME. Neither
    the namespace nor the name contains an underscore.

    Args:
        xml: libvirt's XML of the domain.
        config: the labels to read.
        pod: name of the pod that libvirt runs in; may be empty.
        node: name of this host.
    """
    try:
        domain = parse_xml(xml)
    except ValueError:
        return {}
    labels = _labels_of_domain(domain, config)
    if _element_at_path(domain, "metadata/kubevirt") is not None:
        namespace, _, name = (domain.findtext("name") or "").partition("_")
        kubernetes = {"namespace": namespace, "name": name, "pod": pod, "node": node}
        labels = {key: sanitize(value, MAX_LABEL_CHARACTERS) for key, value in kubernetes.items() if value} | labels
    return labels


def _labels_of_domain(domain: "Element", config: LabelsConfig) -> dict[str, str]:
    values = {name: _value_at_path(domain, path) for name, path in config.metadata.items()}
    return {
        name: sanitize(value.strip(), MAX_LABEL_CHARACTERS) for name, value in values.items() if value and value.strip()
    }


def _read_domain(directory: Path, vm: Vm) -> "Element | None":
    """Return the VM's <domain> element; None if the directory has no readable file with the VM's name and UUID."""
    if "/" in vm.name or "\0" in vm.name:
        return None
    try:
        with (directory / f"{vm.name}.xml").open("rb") as file:
            root = parse_xml(file.read(MAX_XML_BYTES + 1))
    except (OSError, ValueError):
        return None
    domain = root if root.tag == "domain" else root.find("domain")  # the XML of a running VM is inside <domstatus>
    if domain is None or (domain.findtext("uuid") or "").strip().lower() != vm.uuid:
        return None
    element: Element = domain
    return element


def _value_at_path(domain: "Element", path: str) -> str | None:
    """Return the text or the attribute at a path of elements; None if the XML does not have the element or the attribute."""
    elements, _, attribute = path.partition("@")
    element = _element_at_path(domain, elements)
    if element is None:
        return None
    return element.get(attribute) if attribute else element.text


def _element_at_path(domain: "Element", path: str) -> "Element | None":
    element: Element | None = domain
    for name in path.split("/"):
        element = (
            next((child for child in element if _local_name(child) == name), None) if element is not None else None
        )
    return element


def _local_name(element: "Element") -> str:
    return element.tag.rpartition("}")[2] if isinstance(element.tag, str) else ""
