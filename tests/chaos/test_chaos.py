"""Two fixed scripts of faults, against three brokers and a real agent."""

import shutil
import tempfile
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Final

import pytest
import pytest_asyncio

from tests.chaos import faults
from tests.chaos.run import Plan, Result, run
from tests.lab.kafka import KafkaCluster

SEED: Final = 20_11
MIN_EVENTS: Final = 50_000


@pytest.fixture(scope="module")
def kept_folder(request: pytest.FixtureRequest) -> Iterator[Path]:
    """A directory that stays behind when a test fails."""
    failed = request.session.testsfailed
    folder = Path(tempfile.mkdtemp(prefix="qmp-chaos-"))
    yield folder
    if request.session.testsfailed == failed:
        shutil.rmtree(folder)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def brokers(kept_folder: Path) -> AsyncIterator[KafkaCluster]:
    """Three brokers; every test leaves all of them running."""
    async with KafkaCluster(kept_folder / "kafka", 3) as cluster:
        yield cluster


def assert_guarantees_hold(result: Result, folder: Path) -> None:
    print(f"seed {SEED}\n{result.table}")  # noqa: T201 - shown with -s, or when the test fails
    assert not result.problems, "\n".join([*result.problems, f"seed {SEED}; logs are in {folder}"])


async def test_accepted_events_are_delivered_unchanged_and_in_order_under_all_faults(
    brokers: KafkaCluster, kept_folder: Path
) -> None:
    result = await run(
        kept_folder / "faults", brokers, Plan(faults.short_script, SEED, rate=1500, min_events=MIN_EVENTS)
    )
    assert_guarantees_hold(result, kept_folder)
    assert result.verdict.issued >= MIN_EVENTS
    # A machine under load drops more events before the agent has noticed the full disk.
    assert result.verdict.delivered + result.verdict.reported.total() > 0.9 * MIN_EVENTS
    assert result.verdict.delivered > 0.2 * MIN_EVENTS


async def test_records_lost_in_a_damaged_journal_are_counted_and_reported(
    brokers: KafkaCluster, kept_folder: Path
) -> None:
    result = await run(kept_folder / "damage", brokers, Plan(faults.damage_script, SEED, rate=3000))
    assert_guarantees_hold(result, kept_folder)
