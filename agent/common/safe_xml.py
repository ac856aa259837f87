"""Parses XML from files and programs that the agent does not trust."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from xml.etree.ElementTree import Element

MAX_XML_BYTES = 1 << 20
"""Default maximum size of a document in bytes. libvirt's XML of a running VM with a hundred disks has about 100 kB."""


def parse_xml(text: str | bytes, max_bytes: int = MAX_XML_BYTES) -> "Element":
    """Return the root element of an XML document.

    Args:
        text: the document.
        max_bytes: maximum size of the document: in bytes, or in characters if `text` is a str.

    Raises:
        ValueError: the document is too large, not well-formed, or has a document type definition.
    """
    # Import late: these modules take 1 MiB of memory, and many hosts have no XML to parse.
    from defusedxml import DefusedXmlException  # noqa: PLC0415
    from defusedxml.ElementTree import ParseError, fromstring  # noqa: PLC0415

    if len(text) > max_bytes:
        raise ValueError(f"XML is larger than {max_bytes} bytes: {len(text)} bytes")
    try:
        root: Element = fromstring(text, forbid_dtd=True)
    except (ParseError, DefusedXmlException, ValueError, LookupError, RecursionError) as error:
        raise ValueError(f"XML cannot be parsed: {error}") from None
    return root
