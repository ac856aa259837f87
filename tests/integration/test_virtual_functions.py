"""Virtual functions in bytes that iproute2 reads too: both read the same addresses and counters."""

import random
import subprocess
from pathlib import Path

import pytest

from agent.host.rtnetlink import parse_link_reply
from tests.lab.machine import require
from tests.lab.rtnetlink_reply import COUNTERS, SentFunction, functions_in_ip_output, link_reply


def read_with_iproute2(message: bytes, folder: Path) -> list[tuple[int, str, dict[str, int]]]:
    """Return the number, the address and the counters of each virtual function as `ip` prints them."""
    require("ip", "iproute2")
    file = folder / "link"
    file.write_bytes(message)
    command = ["ip", "-statistics", "-details", "monitor", "link", "file", str(file)]
    text = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True).stdout
    return functions_in_ip_output(text)


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
