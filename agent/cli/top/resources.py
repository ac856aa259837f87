"""Renders the host's CPUs and memory, and the resources that VMs wait for, as lines of text. Pure."""

from collections.abc import Iterator, Mapping
from typing import Any

from agent.cli.top.text import ScreenLine, TextStyle, fit_to_width, format_number, wrap_words
from agent.common.durations_and_sizes import format_bytes

TITLE_WIDTH = 24
DEFAULT_WIDTH = 120
"""Width of wrapped lines if there is no maximum width."""


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
    for title, text, is_warning in _host_figures(resources):
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


def _host_figures(resources: Mapping[str, Any]) -> Iterator[tuple[str, str, bool]]:
    """Yield each figure of the host as title, text and warning flag. The text of an unknown figure is empty."""
    committed = _format_percent(resources, "vcpu_commitment_ratio", "of the CPUs")
    unknown = f"without {resources['unknown_vms']} unknown VMs" if resources.get("unknown_vms") else ""
    yield "vCPUs of running VMs", _join_texts(_format_text(resources, "vcpus"), committed, unknown), False
    committed = _format_percent(resources, "memory_commitment_ratio", "of the memory")
    yield (
        "memory of all guests",
        _join_texts(_format_size(resources, "guest_memory_bytes"), committed),
        resources.get("memory_commitment_ratio", 0) > 1,
    )
    yield "memory available", _format_size(resources, "memory_available_bytes"), False
    pools = [pool for pool in resources.get("hugepages", ()) if pool.get("pool_bytes")]
    free = (
        f"{_format_size(pool, 'free_bytes')} of {_format_size(pool, 'pool_bytes')} free ({pool['size']})"
        for pool in pools
    )
    yield (
        "huge pages",
        _join_texts(*free, _format_size(resources, "vm_hugetlb_bytes", "VMs use ") if pools else ""),
        False,
    )
    reads = resources.get("swap_in_bytes_per_second", 0)
    if resources.get("swap_bytes"):
        sizes = f"{_format_size(resources, 'swap_free_bytes')} of {_format_size(resources, 'swap_bytes')} free"
        read = f"{format_bytes(reads)}/s read" if reads else ""
        yield "swap", _join_texts(sizes, _format_size(resources, "vm_swap_bytes", "VMs "), read), reads > 0
    if resources.get("ksm_running") or resources.get("ksm_saved_bytes"):
        saved = f"{_format_size(resources, 'ksm_saved_bytes')} saved" if "ksm_saved_bytes" in resources else ""
        yield "KSM", _join_texts("on" if resources.get("ksm_running") else "off", saved), False
    yield "load (1 min)", format_number(resources.get("load_1m")), False
    waits = (
        _format_percent(resources, f"waiting_for_{name}_ratio", "", f"{text} ")
        for name, text in (("cpu", "a CPU"), ("memory", "memory"), ("io", "I/O"))
    )
    yield "tasks wait for", _join_texts(*waits), False


def _join_texts(*texts: str) -> str:
    return ", ".join(filter(None, texts))


def _format_text(figures: Mapping[str, Any], name: str) -> str:
    return str(figures[name]) if name in figures else ""


def _format_size(figures: Mapping[str, Any], name: str, before: str = "") -> str:
    return f"{before}{format_bytes(figures[name])}" if name in figures else ""


def _format_percent(figures: Mapping[str, Any], name: str, after: str, before: str = "") -> str:
    return f"{before}{figures[name] * 100:.0f} % {after}".rstrip() if name in figures else ""
