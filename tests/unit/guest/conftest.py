"""A guest agent for the tests of sessions."""

import os
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from agent.guest.manager import GuestAgentManager
from tests.lab.fake_guest_agent import FakeGuestAgent
from tests.lab.recording_guest_observer import report_channel, report_pid, report_run_state


@pytest.fixture
async def guest(folder: Path) -> AsyncIterator[FakeGuestAgent]:
    async with FakeGuestAgent(folder / "vm1.qga") as running:
        yield running


def attach(manager: GuestAgentManager, guest: FakeGuestAgent, **more: Any) -> None:
    """Report a running VM with a guest agent."""
    report_pid(manager, os.getpid(), **more)
    report_run_state(manager, running=True, **more)
    report_channel(manager, guest.path, **more)
