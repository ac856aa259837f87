"""The compacted state topic: a consumer that reads it from the beginning knows what is true."""

from pathlib import Path

import pytest

from tests.lab.state_fleet import CompactedTopic, Fleet


@pytest.mark.parametrize("seed", [1, 2, 3])
async def test_a_late_consumer_knows_all_that_is_true_of_a_fleet(seed: int, tmp_path: Path) -> None:
    topic = CompactedTopic()
    fleet = Fleet(tmp_path, topic.deliver, hosts=5, vms=1000 if seed == 1 else 100, seed=seed)
    for _ in range(3):
        await fleet.churn(400)
        await fleet.settle()
        assert fleet.problems(topic.values) == []
        assert fleet.firing_alerts > 0
    assert fleet.counts["kill_agent"] > 50
    assert fleet.counts["_move_vm"] > 100
