"""The host's CPUs and memory, and the resources that VMs wait for, as lines. Pure."""

from collections.abc import Iterator, Mapping
from typing import Any

from agent.cli.top.text import ScreenLine, TextStyle, fit_to_width, format_number, wrap_words
from agent.common.units import format_bytes

TITLE_WIDTH = 24
DEFAULT_WIDTH = 120
"""Width of the lines if there is no maximum."""


def resource_lines(resources: Mapping[str, Any], width: int) -> Iterator[ScreenLine]:
    """Yield a heading, a line for each known figure of the host, and the resources that VMs wait for.

    Args:
        resources: the host's resources in /overview; empty before the first sample.
        width: the maximum width in characters; 0 for no maximum.
    """
    yield ScreenLine(_fit(f"{'HOST':{TITLE_WIDTH}}", width), TextStyle.HEAD)
    if not resources:
        yield ScreenLine(_fit("The host has no sample yet.", width))
        return
    for title, text, is_warning in _figures(resources):
        if text:
            style = TextStyle.WARNING if is_warning else TextStyle.PLAIN
            yield ScreenLine(_fit(f"{title:{TITLE_WIDTH}}{text}", width), style)
    contention = resources.get("contention", ())
    if contention:
        yield ScreenLine(_fit("", width))
        yield ScreenLine(_fit("VMS THAT WAIT FOR OTHERS", width), TextStyle.HEAD)
    for entry in contention:
        for line in wrap_words(str(entry["sentence"]).split(), width or DEFAULT_WIDTH, " "):
            yield ScreenLine(_fit(line, width), TextStyle.WARNING)


def _fit(text: str, width: int) -> str:
    return fit_to_width(text, width) if width else text.rstrip()


def _figures(of: Mapping[str, Any]) -> Iterator[tuple[str, str, bool]]:
    """Yield the title and the text of each figure, and whether it needs attention. The text of an unknown figure is empty."""
    committed = _percent(of, "vcpu_commitment_ratio", "of the CPUs")
    unknown = f"without {of['unknown_vms']} unknown VMs" if of.get("unknown_vms") else ""
    yield "vCPUs of running VMs", _join(_text(of, "vcpus"), committed, unknown), False
    committed = _percent(of, "memory_commitment_ratio", "of the memory")
    yield (
        "memory of all guests",
        _join(_size(of, "guest_memory_bytes"), committed),
        of.get("memory_commitment_ratio", 0) > 1,
    )
    yield "memory available", _size(of, "memory_available_bytes"), False
    pools = [pool for pool in of.get("hugepages", ()) if pool.get("pool_bytes")]
    free = (f"{_size(pool, 'free_bytes')} of {_size(pool, 'pool_bytes')} free ({pool['size']})" for pool in pools)
    yield "huge pages", _join(*free, _size(of, "vm_hugetlb_bytes", "VMs use ") if pools else ""), False
    reads = of.get("swap_in_bytes_per_second", 0)
    if of.get("swap_bytes"):
        sizes = f"{_size(of, 'swap_free_bytes')} of {_size(of, 'swap_bytes')} free"
        read = f"{format_bytes(reads)}/s read" if reads else ""
        yield "swap", _join(sizes, _size(of, "vm_swap_bytes", "VMs "), read), reads > 0
    if of.get("ksm_running") or of.get("ksm_saved_bytes"):
        saved = f"{_size(of, 'ksm_saved_bytes')} saved" if "ksm_saved_bytes" in of else ""
        yield "KSM", _join("on" if of.get("ksm_running") else "off", saved), False
    yield "load (1 min)", format_number(of.get("load_1m")), False
    waits = (
        _percent(of, f"waiting_for_{name}_ratio", "", f"{text} ")
        for name, text in (("cpu", "a CPU"), ("memory", "memory"), ("io", "I/O"))
    )
    yield "tasks wait for", _join(*waits), False


def _join(*texts: str) -> str:
    return ", ".join(filter(None, texts))


def _text(of: Mapping[str, Any], name: str) -> str:
    return str(of[name]) if name in of else ""


def _size(of: Mapping[str, Any], name: str, before: str = "") -> str:
    return f"{before}{format_bytes(of[name])}" if name in of else ""


def _percent(of: Mapping[str, Any], name: str, after: str, before: str = "") -> str:
    return f"{before}{of[name] * 100:.0f} % {after}".rstrip() if name in of else ""
