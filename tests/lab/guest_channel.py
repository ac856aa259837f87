"""The channel of a guest agent on a scripted QEMU."""

from tests.lab.fake_qemu import FakeQemu

PORT = "/machine/peripheral/port0"


def set_channel(fake: FakeQemu, *, connected: bool) -> None:
    """Give a scripted QEMU the channel of a guest agent, and report by an event whether the guest has opened it."""
    children = [{"name": "port0", "type": "child<virtserialport>"}]
    properties = {"name": "org.qemu.guest_agent.0", "chardev": "qga0"}
    fake.replies["qom-list"] = lambda asked: children if asked["path"] == "/machine/peripheral" else []
    fake.replies["qom-get"] = lambda asked: properties[asked["property"]] if asked["path"] == PORT else "none-machine"
    chardev = {"label": "qga0", "filename": "disconnected:unix:/none,server=on", "frontend-open": connected}
    fake.replies["query-chardev"] = [chardev]
    fake.replies["query-status"] = {"status": "running", "running": True}
    fake.emit("VSERPORT_CHANGE", {"id": "port0", "open": connected})
