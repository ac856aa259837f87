"""The port of the guest agent: how a session finds it, and when it polls its state."""

from agent.collectors import PollIntervals
from agent.model.metrics.guest import GUEST_AGENT
from tests.lab.fake_qemu import FakeQemu
from tests.lab.recording_observer import RecordingObserver, session_context, supervised

PORTS = {
    "/machine/peripheral/vdagent0": ("com.redhat.spice.0", "spice"),
    "/machine/peripheral/port0": ("org.qemu.guest_agent.0", "qga0"),
}


def has_guest_agent(fake: FakeQemu, *, connected: bool) -> None:
    """Give a fake QEMU two virtio serial ports; one is that of a guest agent."""
    children = [{"name": path.rpartition("/")[2], "type": "child<virtserialport>"} for path in PORTS]
    fake.replies["qom-list"] = lambda asked: children if asked["path"] == "/machine/peripheral" else []
    fake.replies["qom-get"] = lambda asked: (
        PORTS[asked["path"]][asked["property"] == "chardev"] if asked["path"] in PORTS else "none-machine"
    )
    filename = "disconnected:unix:/run/vm1.qga,server=on"
    chardevs = [{"label": label, "filename": filename, "frontend-open": False} for _, label in PORTS.values()]
    fake.replies["query-chardev"] = [*chardevs[:-1], chardevs[-1] | {"frontend-open": connected}]


async def test_the_guest_agents_channel_is_polled_at_attach_and_after_its_event(fake: FakeQemu) -> None:
    observer = RecordingObserver()
    has_guest_agent(fake, connected=False)
    async with supervised(observer, fake.path, context=session_context(intervals=PollIntervals())):
        await observer.wait_for_polls(1, "guest_agent")
        has_guest_agent(fake, connected=True)
        fake.emit("VSERPORT_CHANGE", {"id": "port0", "open": True})
        await observer.wait_for_polls(1, "guest_agent")
    samples = [samples for _, (family, *_), samples, _ in observer.calls_of("on_samples") if family is GUEST_AGENT]
    where = {"chardev": "qga0", "socket": "/run/vm1.qga", "client_connected": False}
    assert [sample.values for (sample,) in samples] == [where | {"connected": False}, where | {"connected": True}]
    assert fake.count("query-chardev") == 3  # one is the inventory's


async def test_a_port_that_is_plugged_in_later_is_found_when_the_guest_opens_it(fake: FakeQemu) -> None:
    observer = RecordingObserver()
    async with supervised(observer, fake.path, context=session_context(intervals=PollIntervals())):
        await observer.wait_for_polls(1)
        assert observer.outcomes("guest_agent") == []
        has_guest_agent(fake, connected=True)
        fake.emit("VSERPORT_CHANGE", {"id": "port0", "open": True})
        await observer.wait_for_polls(1, "guest_agent")


async def test_a_guest_that_opens_a_port_again_and_again_causes_no_discovery(fake: FakeQemu) -> None:
    observer = RecordingObserver()
    has_guest_agent(fake, connected=True)
    async with supervised(observer, fake.path, context=session_context(intervals=PollIntervals())):
        await observer.wait_for_polls(1, "guest_agent")
        for number in range(5):
            fake.emit("VSERPORT_CHANGE", {"id": "vdagent0", "open": number % 2 == 0})
            fake.emit("VSERPORT_CHANGE", {"id": f"new{number}", "open": True})
            await observer.wait_for_polls(1, "guest_agent")
    assert fake.count("qom-list") == 2, "one for each list of devices, at attach"


async def test_a_port_is_queried_for_its_name_only_once(fake: FakeQemu) -> None:
    observer = RecordingObserver()
    has_guest_agent(fake, connected=True)
    async with supervised(observer, fake.path, context=session_context(intervals=PollIntervals())) as group:
        await observer.wait_for_polls(1, "guest_agent")
        group.resync()
        await observer.wait_for_polls(1, "guest_agent")
    names = [r["arguments"]["path"] for r in fake.requests if r.get("arguments", {}).get("property") == "name"]
    assert names == list(PORTS)
