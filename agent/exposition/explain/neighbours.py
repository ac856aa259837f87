"""Finds noisy neighbours: other VMs of the host that use most of a resource for which a VM waits. Pure."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from agent.exposition.explain.contended_resource_finder import HostResource, format_contending_vm
from agent.exposition.explain.cpu_and_memory import find_cpu_quota, find_cpu_waiting
from agent.exposition.explain.disks import slow_disks_by_pool
from agent.exposition.explain.evidence import CauseFinding, Evidence
from agent.exposition.explain.text_format import format_list, format_percent

MIN_SHARE = 0.5
"""Other VMs count as the cause if together they use at least this share of the resource."""


def find_noisy_neighbours(evidence: Evidence) -> Iterator[CauseFinding]:
    """Find other VMs that use most of the host's CPUs, or send most requests to a pool, while this VM waits for that resource."""
    vm = evidence.view.status.vm
    own = vm.uuid if vm is not None else ""
    if any(find_cpu_waiting(evidence)) and not any(find_cpu_quota(evidence)):
        others, _ = _largest_users(evidence, HostResource.CPU, ("", ""), own)
        yield from _describe_neighbours(
            others, HostResource.CPU, "", evidence.host.get("online_cpus"), "cpus", "the host's CPUs"
        )
    for pool in dict.fromkeys(pool for pool, _ in slow_disks_by_pool(evidence)):
        others, total = _largest_users(evidence, HostResource.DISK, pool, own)
        name = "operations_per_second"
        yield from _describe_neighbours(
            others, HostResource.DISK, pool[0], total.get(name), name, f"the requests to {pool[0]}"
        )


def _largest_users(
    evidence: Evidence, resource: HostResource, pool: Sequence[str], own: str
) -> tuple[list[Mapping[str, Any]], Mapping[str, float]]:
    """Return the other VMs that use most of a resource, and the sums over all VMs; empty if no VM waits for the resource."""
    for found in evidence.host.get("contention", ()):
        if (found["resource"], found["pool"], found["kind"]) == (resource.value, *pool):
            return [vm for vm in found["taking"] if vm["uuid"] != own], found["total"]
    return [], {}


def _describe_neighbours(
    others: Sequence[Mapping[str, Any]],
    resource: HostResource,
    subject: str,
    whole: float | None,
    figure: str,
    what: str,
) -> Iterator[CauseFinding]:
    taken = sum(vm[figure] for vm in others)
    if not whole or taken < MIN_SHARE * whole:
        return
    vms = format_list([format_contending_vm(vm, resource, "taking") for vm in others])
    sentence = f"Other VMs take {format_percent(taken / whole)} of {what} while this VM waits for them: {vms}."
    yield CauseFinding(subject, sentence, {"taken": taken, "total": whole, "vms": [dict(vm) for vm in others]})
