"""The systemd unit permits what the code needs."""

import re
from pathlib import Path

ROOT = Path(__file__).parents[3]


def test_the_unit_permits_each_address_family_that_the_code_names() -> None:
    code = "\n".join(path.read_text() for path in (ROOT / "agent").rglob("*.py"))
    unit = (ROOT / "deploy/systemd/qmp-agent.service").read_text()
    match = re.search(r"^RestrictAddressFamilies=(.*)$", unit, re.MULTILINE)
    assert match is not None
    used = set(re.findall(r"\bsocket\.(AF_[A-Z0-9]+)\b", code))
    assert used >= {"AF_UNIX", "AF_NETLINK"}
    assert used - set(match[1].split()) == set()
