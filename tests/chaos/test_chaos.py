"""The short form: each fault in a fixed script, against three brokers and a real agent, and a judge of all that came out."""

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
LEAST: Final = 100_000


@pytest.fixture(scope="module")
def kept(request: pytest.FixtureRequest) -> Iterator[Path]:
    """A folder that is left behind where a test failed."""
    failed = request.session.testsfailed
    folder = Path(tempfile.mkdtemp(prefix="qmp-chaos-"))
    yield folder
    if request.session.testsfailed == failed:
        shutil.rmtree(folder)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def brokers(kept: Path) -> AsyncIterator[KafkaCluster]:
    """Three brokers; whatever a test does to them, it leaves all three running."""
    async with KafkaCluster(kept / "kafka", 3) as cluster:
        yield cluster


def assert_kept_its_promise(result: Result, folder: Path) -> None:
    print(f"seed {SEED}\n{result.table}")  # noqa: T201 - shown with -s, or when the test fails
    assert not result.problems, "\n".join([*result.problems, f"seed {SEED}; all of it is in {folder}"])


@pytest.mark.timeout(240)
async def test_every_accepted_event_is_delivered_once_deduplicated_whole_and_in_order_whatever_fails(
    brokers: KafkaCluster, kept: Path
) -> None:
    result = await run(kept / "faults", brokers, Plan(faults.short, SEED, rate=3000, least=LEAST))
    assert_kept_its_promise(result, kept)
    assert result.verdict.issued >= LEAST
    assert result.verdict.delivered > 0.9 * LEAST


@pytest.mark.timeout(240)
async def test_what_a_damaged_journal_loses_is_counted_and_told(brokers: KafkaCluster, kept: Path) -> None:
    result = await run(kept / "damage", brokers, Plan(faults.damage, SEED, rate=3000))
    assert_kept_its_promise(result, kept)
