"""Virtual functions in bytes that iproute2 reads too: both read the same addresses and counters."""

import random
import re
import subprocess
from pathlib import Path

import pytest

from agent.host.rtnetlink import parse_link_reply
from tests.lab.machine import require
from tests.lab.rtnetlink_reply import COUNTERS, SentFunction, link_reply

SHOWN = {"RX": ("rx_bytes", "rx_packets", "", "", "rx_dropped"), "TX": ("tx_bytes", "tx_packets", "tx_dropped")}
"""The columns that ip-link(8) prints for a virtual function. Those without a name are not read by the agent."""


def read_with_iproute2(message: bytes, folder: Path) -> list[tuple[int, str, dict[str, int]]]:
    """Return the number, the address and the counters of each virtual function as `ip` prints them."""
    require("ip", "iproute2")
    file = folder / "link"
    file.write_bytes(message)
    command = ["ip", "-statistics", "-details", "monitor", "link", "file", str(file)]
    text = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True).stdout
    functions = []
    for part in re.split(r"^ +vf ", text, flags=re.MULTILINE)[1:]:
        number, address = re.findall(r"^(\d+) +link/ether ([0-9a-f:]+)", part)[0]
        counters: dict[str, int] = {}
        for direction, names in SHOWN.items():
            line = re.findall(rf"{direction}: bytes.*\n(.*)", part)[0]
            counters |= dict(zip(names, map(int, line.split()), strict=True))
        functions.append((int(number), address, {name: count for name, count in counters.items() if name}))
    return functions


@pytest.mark.parametrize("seed", range(5))
def test_the_agent_and_iproute2_read_the_same(seed: int, tmp_path: Path) -> None:
    chosen = random.Random(seed)
    functions = [
        SentFunction(
            number,
            chosen.randbytes(6),
            {name: chosen.getrandbits(chosen.choice((1, 16, 40, 64))) for name in COUNTERS if name is not None},
        )
        for number in chosen.sample(range(256), chosen.randint(1, 40))
    ]
    message = link_reply(functions)
    read = [(each.number, each.mac, each.counters) for each in parse_link_reply(message)]
    assert len(read) == len(functions)
    assert read == read_with_iproute2(message, tmp_path)
