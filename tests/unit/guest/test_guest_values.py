"""Values that a session keeps and drops: while file systems are frozen, after a command that fails, and after a loss."""

import pytest

from agent.guest.session import parse_guest_info
from agent.model.metrics.guest import GUEST_AGENT_SESSION, GUEST_FILESYSTEM, GUEST_FREEZE, GUEST_OS, GUEST_USERS
from tests.lab.fake_guest_agent import FakeGuestAgent
from tests.lab.recording_guest_observer import RecordingGuestObserver, guest_config, managed
from tests.unit.guest.conftest import attach

INTERVALS = {"filesystems": 60, "freeze": 30}
REFUSAL = {"error": {"class": "CommandNotFound", "desc": "disabled: the command is not allowed"}}
ENABLED_WHILE_FROZEN = [{"name": name, "enabled": True} for name in ("guest-info", "guest-fsfreeze-status")]


async def test_while_file_systems_are_frozen_only_their_state_is_queried(guest: FakeGuestAgent) -> None:
    observer = RecordingGuestObserver()
    async with managed(observer, guest_config(intervals=INTERVALS)) as manager:
        attach(manager, guest)
        await observer.wait_until(lambda: observer.count(GUEST_FILESYSTEM))
        guest.replies["guest-fsfreeze-status"] = {"return": "frozen"}
        await observer.wait_until(lambda: observer.last(GUEST_FREEZE) == {(): {"frozen": True}})
        asked, polls = guest.count("guest-get-fsinfo"), guest.count("guest-fsfreeze-status")
        await guest.wait_for("guest-fsfreeze-status", polls + 3)
        assert guest.count("guest-get-fsinfo") == asked
        guest.replies["guest-fsfreeze-status"] = {"return": "thawed"}
        await guest.wait_for("guest-get-fsinfo", asked + 1)
    assert guest.count("guest-info") == 2, "while frozen, it permits few commands"


async def test_a_refusal_because_of_a_freeze_is_no_failure(guest: FakeGuestAgent) -> None:
    """A client freezes between two freeze polls: one command is refused, no other is sent, and the last values stay."""
    observer = RecordingGuestObserver()
    async with managed(observer, guest_config(intervals={"filesystems": 10, "users": 10, "freeze": 60})) as manager:
        attach(manager, guest)
        await observer.wait_until(lambda: observer.count(GUEST_OS) and observer.count(GUEST_USERS))
        seen = len(guest.requests)
        guest.replies |= {"guest-fsfreeze-status": {"return": "frozen"}, "guest-get-fsinfo": REFUSAL}
        await observer.wait_until(lambda: observer.last(GUEST_FREEZE) == {(): {"frozen": True}})
        await guest.wait_for("guest-fsfreeze-status", guest.count("guest-fsfreeze-status") + 1)
        names = [request["execute"] for request in guest.requests[seen:]]
        frozen_at = names.index("guest-fsfreeze-status")
        assert set(names[frozen_at:]) == {"guest-fsfreeze-status"}
        assert names[:frozen_at].count("guest-get-fsinfo") <= 1
        assert observer.lost == []
        asked = guest.count("guest-get-fsinfo")
        guest.replies |= {"guest-fsfreeze-status": {"return": "thawed"}, "guest-get-fsinfo": {"return": []}}
        await guest.wait_for("guest-fsfreeze-status", guest.count("guest-fsfreeze-status") + 3)
        assert guest.count("guest-get-fsinfo") > asked, "no pause after a failure"


async def test_a_refused_command_checks_for_a_freeze_and_drops_its_values(guest: FakeGuestAgent) -> None:
    observer = RecordingGuestObserver()
    async with managed(observer, guest_config(intervals={"filesystems": 60})) as manager:
        attach(manager, guest)
        await observer.wait_until(lambda: observer.count(GUEST_OS))
        polls = guest.count("guest-fsfreeze-status")
        guest.replies["guest-get-fsinfo"] = REFUSAL
        await observer.wait_until(lambda: observer.lost)
        assert guest.count("guest-fsfreeze-status") == polls + 1
    assert observer.lost_families == [(GUEST_FILESYSTEM,)]
    assert observer.states() == ["connecting", "up"]


@pytest.mark.parametrize("raw", [b"junk\n", b'{"return": "frozen"}\n'])
async def test_the_values_of_an_unreadable_reply_are_out_of_date(guest: FakeGuestAgent, raw: bytes) -> None:
    observer = RecordingGuestObserver()
    async with managed(observer, guest_config(intervals={"filesystems": 60})) as manager:
        attach(manager, guest)
        await observer.wait_until(lambda: observer.count(GUEST_OS))
        guest.raw["guest-get-fsinfo"] = raw
        await observer.wait_until(lambda: observer.lost)
    assert observer.lost_families == [(GUEST_FILESYSTEM,)]


async def test_a_guest_info_of_frozen_file_systems_is_read_again_after_the_thaw(guest: FakeGuestAgent) -> None:
    """A short freeze can begin after a freeze poll and last until guest-info, which then lists few commands as enabled."""
    observer = RecordingGuestObserver()
    info = guest.replies["guest-info"]
    async with managed(observer, guest_config(intervals={"users": 60})) as manager:
        attach(manager, guest)
        await observer.wait_until(lambda: observer.count(GUEST_OS))
        guest.replies["guest-info"] = {"return": {"version": "7.2", "supported_commands": ENABLED_WHILE_FROZEN}}
        guest.replies["guest-fsfreeze-status"] = {"return": "frozen"}
        await observer.wait_until(lambda: observer.last(GUEST_FREEZE) == {(): {"frozen": True}})
        assert observer.lost == []
        guest.replies |= {"guest-info": info, "guest-fsfreeze-status": {"return": "thawed"}}
        seen = observer.count(GUEST_USERS)
        await observer.wait_until(lambda: observer.count(GUEST_USERS) > seen)


async def test_a_command_that_the_guest_forbids_later_leaves_no_values(guest: FakeGuestAgent) -> None:
    observer = RecordingGuestObserver()
    async with managed(observer, guest_config(intervals={"filesystems": 60})) as manager:
        attach(manager, guest)
        await observer.wait_until(lambda: observer.count(GUEST_OS))
        for command in guest.replies["guest-info"]["return"]["supported_commands"]:
            command["enabled"] &= command["name"] != "guest-get-fsinfo"
        await observer.wait_until(lambda: observer.lost)
    assert observer.lost_families == [(GUEST_FILESYSTEM,)]
    assert observer.last(GUEST_AGENT_SESSION)[()]["missing_commands"] == ["guest-get-fsinfo", "guest-get-load"]


async def test_after_a_loss_everything_is_queried_again(guest: FakeGuestAgent) -> None:
    observer = RecordingGuestObserver()
    async with managed(observer, guest_config()) as manager:
        attach(manager, guest)
        await observer.wait_until(lambda: guest.count("guest-get-time"))
        guest.drop()
        await observer.wait_until(lambda: observer.count(GUEST_OS) == 2 and observer.count(GUEST_FILESYSTEM) == 2)


def test_a_list_of_many_commands_takes_no_memory() -> None:
    names = [{"name": f"guest-get-{number}", "enabled": True} for number in range(8000)]
    listed = [*names, {"name": "guest-get-fsinfo", "enabled": True}, {"name": "guest-exec", "enabled": True}]
    assert parse_guest_info({"version": "7.2", "supported_commands": listed}) == (
        "7.2",
        frozenset({"guest-get-fsinfo"}),
    )
