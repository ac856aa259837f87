"""Computes samples for alert rules from the samples of other families: image chains of disks, and guest memory under a balloon. Pure."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from agent.alerts.rules.snapshot_ages import ExternalSnapshotAges
from agent.model.family import GAUGE, TEXT, Family, Field, FieldValues, Sample
from agent.model.metrics.block_layers import BLOCK_LAYER
from agent.model.metrics.memory import BALLOON, GUEST_MEMORY, MEMORY

DISK_CHAIN = Family(
    "disk_chain",
    "query-named-block-nodes and query-blockstats",
    "The images of a disk and its snapshots.",
    ("device",),
    (
        Field("depth", "depth", GAUGE, "Number of backing images under the image that the guest writes to."),
        Field(
            "age", "snapshot_age_seconds", GAUGE, "Age of the disk's oldest snapshot in seconds; absent without one."
        ),
        Field("kind", "snapshot_kind", TEXT, "Kind of the oldest snapshot: internal or external."),
    ),
)

BALLOON_MEMORY = Family(
    "balloon_memory",
    "qom-get guest-stats, query-balloon and query-memory-size-summary",
    "The memory of a guest under its balloon.",
    (),
    (
        Field("ratio", "available_ratio", GAUGE, "Share of the guest's memory that it can use without swapping."),
        Field("held", "held_bytes", GAUGE, "Size of the memory that the balloon holds in bytes."),
    ),
)


@dataclass(slots=True)
class VmRuleState:
    """Values that the alert rules of one VM keep from one poll to the next.

    A subject is the disk, job or other device that an alert concerns. A level is a text that distinguishes several alerts of one subject.

    Attributes:
        pending: Start of each condition that has not fired its alert yet, in nanoseconds since the epoch; by alert, subject and level.
        stored: The part of `pending` that is stored in the VM's persistent entry.
        previous: Value at the previous poll of each field that is compared with `INCREASES`; by alert, subject and level.
        counters: The last samples of each family whose rules compare only counters: the number of the rule set, and the labels and the
            counters of each sample.
        latest: The last values of each family that a derivation reads but that does not trigger the derivation.
        events: Times of the counted events in nanoseconds since the epoch, by alert and subject.
    """

    pending: dict[tuple[str, str, str], int] = field(default_factory=dict)
    stored: dict[tuple[str, str, str], int] = field(default_factory=dict)
    previous: dict[tuple[str, str, str], float] = field(default_factory=dict)
    counters: dict[Family, tuple[int, list[tuple[tuple[str, ...], list[Any]]]]] = field(default_factory=dict)
    latest: dict[Family, FieldValues] = field(default_factory=dict)
    events: dict[tuple[str, str], list[int]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class SampleDerivation:
    """Computes the samples of a derived family from polls of other families.

    Attributes:
        family: The derived family.
        sources: The families to compute the samples from. Samples are derived after each poll of the first family.
        derive: Returns the derived samples, given the VM's UUID, the VM's values of earlier polls, the samples of the first family and
            the poll's time.
    """

    family: Family
    sources: tuple[Family, ...]
    derive: Callable[[str, VmRuleState, Sequence[Sample], int], Iterator[Sample]]


def _memory_under_balloon(
    _uuid: str, rule_state: VmRuleState, samples: Sequence[Sample], _time_ns: int
) -> Iterator[Sample]:
    memory_values, actual_bytes = (
        rule_state.latest.get(MEMORY, {}),
        rule_state.latest.get(BALLOON, {}).get("actual_bytes"),
    )
    base_bytes = memory_values.get("base_bytes")
    for sample in samples:
        available_bytes, total_bytes = sample.values.get("available_bytes"), sample.values.get("total_bytes")
        if available_bytes is not None and total_bytes and actual_bytes is not None and base_bytes is not None:
            held_by_balloon = base_bytes + memory_values.get("plugged_bytes", 0) - actual_bytes
            yield Sample(
                BALLOON_MEMORY, (), {"available_ratio": available_bytes / total_bytes, "held_bytes": held_by_balloon}
            )


def all_sample_derivations(ages: ExternalSnapshotAges) -> tuple[SampleDerivation, ...]:
    """Return an object for each family whose samples the agent computes from samples of other families.

    Args:
        ages: the external snapshots of all VMs. The derivation of disk chains updates this object.
    """

    def derive_disk_chains(
        uuid: str, _rule_state: VmRuleState, samples: Sequence[Sample], time_ns: int
    ) -> Iterator[Sample]:
        layers: dict[str, dict[str, FieldValues]] = {}
        for sample in samples:
            device, layer = sample.labels
            layers.setdefault(device, {})[layer] = sample.values
        paths = {
            device: list(_image_paths(device_layers))
            for device, device_layers in layers.items()
            if "format" in device_layers
        }
        oldest_snapshot_ns = ages.on_poll(uuid, {device: images for device, images in paths.items() if images}, time_ns)
        for device, device_layers in layers.items():
            yield Sample(DISK_CHAIN, (device,), _chain_values(device_layers, oldest_snapshot_ns.get(device), time_ns))

    return (
        SampleDerivation(DISK_CHAIN, (BLOCK_LAYER,), derive_disk_chains),
        SampleDerivation(BALLOON_MEMORY, (GUEST_MEMORY, BALLOON, MEMORY), _memory_under_balloon),
    )


def _image_paths(layers: Mapping[str, FieldValues]) -> Iterator[str]:
    """Yield the paths of a disk's images, from the top to the base. Stop at an image without a path."""
    for layer in ("format", *(f"backing-{depth}" for depth in range(1, len(layers)))):
        path = layers.get(layer, {}).get("path")
        if not isinstance(path, str) or not path:
            return
        yield path


def _chain_values(layers: Mapping[str, FieldValues], external_ns: int | None, time_ns: int) -> FieldValues:
    values: dict[str, Any] = {"depth": sum(layer.startswith("backing-") for layer in layers)}
    snapshots = layers.get("format", {}).get("snapshots")
    creation_times = [
        seconds
        for snapshot in (snapshots if isinstance(snapshots, list) else ())
        if isinstance(snapshot, dict) and type(seconds := snapshot.get("created_timestamp_seconds")) is int
    ]
    ages_and_kinds = [(time_ns / 1e9 - min(creation_times), "internal")] if creation_times else []
    ages_and_kinds += [((time_ns - external_ns) / 1e9, "external")] if external_ns is not None else []
    values["snapshots"] = len(creation_times) + (external_ns is not None)
    if ages_and_kinds:
        values["snapshot_age_seconds"], values["snapshot_kind"] = max(ages_and_kinds)
    return values
