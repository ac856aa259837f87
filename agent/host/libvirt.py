"""What libvirt's files say of a VM for people: Nova's project and flavour, oVirt's cluster, a title. Blocks.

libvirt keeps a running VM's XML in /run/libvirt/qemu and a defined one's in /etc/libvirt/qemu, readable by root alone; where the agent may
not read them there are no labels of theirs. The metadata in them is whatever the manager was told by its users, and is treated so.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from xml.etree.ElementTree import Element, ParseError

from defusedxml import DefusedXmlException
from defusedxml.ElementTree import fromstring

from agent.record import Vm, clean

MAX_BYTES = 1 << 20
"""The largest file that is read; a running VM with a hundred disks has some 100 kB."""

MAX_VALUE = 128
"""Characters of a label's value."""

PATH = re.compile(r"[\w.-]+(/[\w.-]+)*(@[\w.-]+)?")
"""Elements below <domain> by their names without namespaces, and an attribute of the last: `metadata/instance/flavor@name`."""


@dataclass(frozen=True, slots=True)
class Labels:
    """Which labels are made of what.

    Attributes:
        folders: where libvirt keeps its XML, the best first.
        paths: where each label's value stands, by the label's name.
    """

    folders: Sequence[Path] = ()
    paths: Mapping[str, str] = field(default_factory=dict)


def labels_of(vm: Vm, labels: Labels) -> dict[str, str]:
    """Return the labels of a VM that can be had; empty where there is no file of its, or none that can be read."""
    for folder in labels.folders:
        domain = _domain(folder, vm)
        if domain is not None:
            found = {name: _value(domain, path) for name, path in labels.paths.items()}
            return {name: clean(value.strip(), MAX_VALUE) for name, value in found.items() if value and value.strip()}
    return {}


def _domain(folder: Path, vm: Vm) -> Element | None:
    """Return the <domain> of a VM, if it is this VM's and not another's of that name."""
    if "/" in vm.name or "\0" in vm.name:
        return None
    try:
        with (folder / f"{vm.name}.xml").open("rb") as file:
            text = file.read(MAX_BYTES + 1)
        if len(text) > MAX_BYTES:
            return None
        root: Any = fromstring(text, forbid_dtd=True)
    except (OSError, ParseError, DefusedXmlException, ValueError, LookupError, RecursionError):
        return None
    domain = root if root.tag == "domain" else root.find("domain")  # a running one's is inside <domstatus>
    if domain is None or (domain.findtext("uuid") or "").strip().lower() != vm.uuid:
        return None
    found: Element = domain
    return found


def _value(domain: Element, path: str) -> str | None:
    elements, _, attribute = path.partition("@")
    element: Element | None = domain
    for name in elements.split("/"):
        element = next((child for child in element if _name(child) == name), None) if element is not None else None
    if element is None:
        return None
    return element.get(attribute) if attribute else element.text


def _name(element: Element) -> str:
    return element.tag.rpartition("}")[2] if isinstance(element.tag, str) else ""
