"""Finds out whether a VM is slow because of its CPUs or its memory. Pure."""

from collections.abc import Iterator

from agent.common.durations_and_sizes import format_bytes
from agent.exposition.explain.evidence import CauseFinding, Evidence
from agent.exposition.explain.text_format import format_duration, format_percent
from agent.model.metrics.memory import BALLOON, GUEST_MEMORY, MEMORY
from agent.model.metrics.vm_process_and_interfaces import CGROUP, IOTHREAD, PROCESS, VCPU

QUOTA_RATIO = 0.25
"""Minimum share of the quota's periods in which the CPU quota throttles the VM."""
MIN_DELAY, DELAY_RATIO = 0.1, 0.15
"""Run delay is time in which a vCPU is ready but has no host CPU.

`MIN_DELAY` is the minimum run delay of all vCPUs together, in seconds per second. `DELAY_RATIO` is the minimum share of the run delay in
the sum of run delay and run time.
"""
BUSY_THREAD = 0.9
"""A thread counts as busy if it uses at least this share of a host CPU."""
BUSY_VCPUS = 0.95
"""A guest counts as busy if it uses at least this share of all its vCPUs."""
SWAPPED_RATIO, MIN_FAULTS = 0.05, 10.0
"""Minimum share of swapped-out memory in the process's memory, and minimum number of major page faults per second."""
MIN_GUEST_SWAP = 1 << 20
"""A guest counts as swapping if it swaps at least this many bytes per second, in and out together."""
LOW_RATIO = 0.05
"""A guest counts as short of memory if less than this share of its memory is available."""
MIN_STALL = 0.05
"""Minimum share of the time in which all processes of a cgroup wait for memory (PSI `full`)."""


def find_cpu_quota(evidence: Evidence) -> Iterator[CauseFinding]:
    """Find a CPU quota that throttles the VM."""
    names = ("cpu_periods_total", "cpu_throttled_periods_total", "cpu_throttled_seconds_total")
    rates = evidence.counter_rates(CGROUP, (), names)
    periods, throttled = rates.get("cpu_periods_total"), rates.get("cpu_throttled_periods_total")
    if not periods or throttled is None or throttled < QUOTA_RATIO * periods:
        return
    share = min(1.0, throttled / periods)
    path = evidence.whole_vm_values(CGROUP).get("path", "")
    waited = rates.get("cpu_throttled_seconds_total")
    times = f", in sum {waited:.2g} s in each second" if waited is not None else ""
    sentence = (
        f"The CPU quota (`cpu.max`) of its cgroup {path} stops the VM in {format_percent(share)} of the periods{times}."
    )
    yield CauseFinding("", sentence, {"throttled_ratio": share, "cgroup": path})


def find_cpu_waiting(evidence: Evidence) -> Iterator[CauseFinding]:
    """Find vCPUs that wait for a host CPU."""
    poll = [
        evidence.counter_rates(VCPU, labels, ("run_delay_seconds_total", "cpu_seconds_total"))
        for labels in evidence.latest_values_by_subject(VCPU)
    ]
    delay = sum(rates.get("run_delay_seconds_total", 0.0) for rates in poll)
    used = sum(rates.get("cpu_seconds_total", 0.0) for rates in poll)
    if delay < MIN_DELAY or delay < DELAY_RATIO * (delay + used):
        return
    share = delay / (delay + used)
    sentence = (
        f"The vCPUs wait for host CPUs (steal): they are ready but do not run for {delay:.2g} s in each second, "
        f"{format_percent(share)} of the time in which they want to run."
    )
    yield CauseFinding("", sentence, {"waiting_cpus": delay, "used_cpus": used, "vcpus": evidence.vcpu_count()})


def find_thread_busy(evidence: Evidence) -> Iterator[CauseFinding]:
    """Find an iothread or a main loop that uses nearly a whole host CPU."""
    main = evidence.counter_rate(PROCESS, "main_loop_cpu_seconds_total")
    if main is not None and main >= BUSY_THREAD:
        sentence = (
            f"QEMU's main loop uses {format_percent(main)} of a host CPU, and serves devices without an iothread late."
        )
        yield CauseFinding("", sentence, {"cpus": main})
    for labels in evidence.latest_values_by_subject(IOTHREAD):
        used = evidence.counter_rate(IOTHREAD, "cpu_seconds_total", labels)
        if used is not None and used >= BUSY_THREAD:
            sentence = f"The iothread {labels[0]} uses {format_percent(used)} of a host CPU, and serves its disks late."
            yield CauseFinding(labels[0], sentence, {"cpus": used})


def find_guest_cpu_busy(evidence: Evidence) -> Iterator[CauseFinding]:
    """Find a guest that uses nearly all the time of its vCPUs."""
    count = evidence.vcpu_count()
    known = [
        evidence.counter_rate(VCPU, "cpu_seconds_total", labels) for labels in evidence.latest_values_by_subject(VCPU)
    ]
    used = sum(rate for rate in known if rate is not None)
    if count and None not in known and used >= BUSY_VCPUS * count:
        yield CauseFinding(
            "", f"The guest itself uses {used:.3g} of its {count} vCPUs.", {"used_cpus": used, "vcpus": count}
        )


def find_out_of_memory(evidence: Evidence) -> Iterator[CauseFinding]:
    """Find a process that the guest's or the host's kernel killed for lack of memory."""
    for alert in evidence.alerts_named("guest_oom", "cgroup_oom"):
        is_guest = alert["alert"] == "guest_oom"
        family = GUEST_MEMORY if is_guest else CGROUP
        whose, where = ("guest's", "in the guest") if is_guest else ("host's", "in the VM's cgroup")
        seconds = max(0.0, evidence.now - alert["since"])
        kills = evidence.whole_vm_number(family, "oom_kills_total")
        total = f"; {kills:.0f} in all" if kills is not None else ""
        sentence = (
            f"The {whose} kernel killed a process {where} for lack of memory {format_duration(seconds)} ago{total}."
        )
        yield CauseFinding("", sentence, {"seconds_ago": seconds} | ({"oom_kills": kills} if kills is not None else {}))


def find_memory_limited(evidence: Evidence) -> Iterator[CauseFinding]:
    """Find a cgroup whose processes all wait for memory, because of the cgroup's limit."""
    stalled = evidence.counter_rate(CGROUP, "pressure_memory_stalled_seconds_total")
    if stalled is None or stalled < MIN_STALL:
        return
    used, limit = (evidence.whole_vm_number(CGROUP, name) for name in ("memory_bytes", "memory_limit_bytes"))
    of_limit = (
        f"; it uses {format_bytes(used)} of {format_bytes(limit)}" if used is not None and limit is not None else ""
    )
    sentence = f"All processes of the VM's cgroup wait for memory {format_percent(stalled)} of the time{of_limit}."
    yield CauseFinding("", sentence, {"stalled_ratio": stalled})


def find_swapped(evidence: Evidence) -> Iterator[CauseFinding]:
    """Find swapped-out memory that the VM reads back from the host's swap."""
    out, resident = (evidence.whole_vm_number(PROCESS, name) for name in ("swap_bytes", "resident_bytes"))
    faults = evidence.counter_rate(PROCESS, "major_faults_total")
    if out is None or resident is None or faults is None or faults < MIN_FAULTS:
        return
    if out >= SWAPPED_RATIO * (out + resident):
        sentence = (
            f"The host has swapped out {format_bytes(out)} of the VM's memory ({format_percent(out / (out + resident))}), and the VM "
            f"waits for {faults:.3g} pages/s from disk."
        )
        yield CauseFinding(
            "", sentence, {"swap_bytes": out, "resident_bytes": resident, "major_faults_per_second": faults}
        )


def find_guest_memory_low(evidence: Evidence) -> Iterator[CauseFinding]:
    """Find a guest that is short of memory. Report how much memory its balloon holds."""
    available, total = (evidence.whole_vm_number(GUEST_MEMORY, name) for name in ("available_bytes", "total_bytes"))
    if available is None or not total or available >= LOW_RATIO * total:
        return
    figures = {"available_bytes": available, "total_bytes": total}
    left = f"The guest has {format_bytes(available)} of {format_bytes(total)} memory left ({format_percent(available / total)})"
    base, actual = evidence.whole_vm_number(MEMORY, "base_bytes"), evidence.whole_vm_number(BALLOON, "actual_bytes")
    held = (
        base + (evidence.whole_vm_number(MEMORY, "plugged_bytes") or 0) - actual
        if base is not None and actual is not None
        else 0
    )
    if held > 0:
        yield CauseFinding("", f"{left}, while its balloon holds {format_bytes(held)}.", figures | {"held_bytes": held})
    else:
        yield CauseFinding("", f"{left}.", figures)


def find_guest_swapping(evidence: Evidence) -> Iterator[CauseFinding]:
    """Find a guest that swaps to its own swap space."""
    rates = evidence.counter_rates(GUEST_MEMORY, (), ("swap_in_bytes_total", "swap_out_bytes_total"))
    if rates and (swap := sum(rates.values())) >= MIN_GUEST_SWAP:
        yield CauseFinding("", f"The guest swaps {format_bytes(swap)}/s in and out.", {"swap_bytes_per_second": swap})
