"""The compacted state topic: a consumer that reads it from the beginning knows what is true."""

from pathlib import Path

import pytest

from tests.lab.state_fleet import CompactedTopic, Fleet


@pytest.mark.parametrize(
    ("vms", "seed", "operations"),
    [
        (1000, 1, 60),  # each start of an agent attaches hundreds of VMs, so fewer operations take as long
        (100, 2, 400),
        (100, 3, 400),
    ],
)
async def test_a_late_consumer_knows_all_that_is_true_of_a_fleet(
    vms: int, seed: int, operations: int, tmp_path: Path
) -> None:
    topic = CompactedTopic()
    fleet = Fleet(tmp_path, topic.deliver, hosts=5, vms=vms, seed=seed)
    for _ in range(3):
        await fleet.churn(operations)
        await fleet.settle()
        assert fleet.problems(topic.values) == []
        assert fleet.firing_alerts > 0
    assert fleet.counts["kill_agent"] > operations / 8
    assert fleet.counts["_move_vm"] > operations / 4
