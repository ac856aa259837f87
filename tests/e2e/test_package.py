"""What is built from this source installs and works where there is nothing else."""

import asyncio
import contextlib
import json
import re
import subprocess
import sys
import tarfile
import venv
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import aiohttp
import pytest

from agent import __version__
from agent.cli.demo.guest import until
from tests.lab.fixtures import StartGuest
from tests.lab.machine import free_port

ROOT: Final = Path(__file__).parents[2]

pytestmark = pytest.mark.timeout(300)  # a slow index


def build(source: Path, *what: str) -> None:
    """Build what is asked for into the source's dist/."""
    subprocess.run(
        [sys.executable, "-m", "hatchling", "build", *what], cwd=source, check=True, capture_output=True, timeout=120
    )


@pytest.fixture(scope="module")
def dist(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder with a wheel and an sdist of this source."""
    folder = tmp_path_factory.mktemp("dist")
    build(ROOT, "-d", str(folder))
    yield folder


def files(wheel: Path) -> dict[str, bytes]:
    with zipfile.ZipFile(wheel) as opened:
        return {name: opened.read(name) for name in opened.namelist() if not name.endswith("/RECORD")}


def test_a_wheel_has_all_that_the_package_has_and_nothing_else(dist: Path) -> None:
    (wheel,) = dist.glob("*.whl")
    tracked = subprocess.run(["git", "ls-files", "agent"], cwd=ROOT, check=True, capture_output=True, text=True).stdout
    inside = {name for name in files(wheel) if not re.match(r"qmp_agent-[^/]+\.dist-info/", name)}
    assert set(tracked.split()) <= inside
    assert {name.split("/")[0] for name in inside} == {"agent"}
    assert {"agent/py.typed", "agent/http/page/index.html", "agent/http/page/main.js"} <= inside


def test_the_sdist_makes_the_same_wheel(dist: Path, tmp_path: Path) -> None:
    (sdist,) = dist.glob("*.tar.gz")
    with tarfile.open(sdist) as opened:
        opened.extractall(tmp_path, filter="data")
    (source,) = tmp_path.iterdir()
    build(source, "-t", "wheel")
    (again,), (first,) = (source / "dist").glob("*.whl"), dist.glob("*.whl")
    assert files(again) == files(first)


@pytest.fixture(scope="module")
def installed(dist: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bare virtual environment into which the wheel was installed; its folder of commands."""
    folder = tmp_path_factory.mktemp("bare")
    venv.create(folder, with_pip=False)
    (wheel,) = dist.glob("*.whl")
    subprocess.run(
        [sys.executable, "-m", "pip", f"--python={folder}/bin/python", "install", "-q", "--no-compile", wheel],
        check=True,
        timeout=240,
    )
    return folder / "bin"


def said(*command: str | Path) -> str:
    return subprocess.run(command, check=True, capture_output=True, text=True, timeout=60, cwd="/").stdout


async def test_what_was_installed_watches_a_guest_and_shows_its_page(
    installed: Path, start_guest: StartGuest, folder: Path
) -> None:
    command = installed / "qmp-agent"
    assert said(command, "--version") == f"qmp-agent {__version__}\n"
    guest = await start_guest("web-3")
    port = free_port()
    config = folder / "agent.yaml"
    told = {"monitors": [{"dial": str(guest.monitor)}], "web": {"listen_address": f"127.0.0.1:{port}"}}
    config.write_text(json.dumps(told))
    assert "the config is good" in said(command, "check", "--syntax", "--config", config)
    process = await asyncio.create_subprocess_exec(
        *("setpriv", "--pdeathsig", "KILL", command, "run", "--config", config),
        stdout=asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.DEVNULL,
        cwd="/",
    )
    try:

        async def watched() -> bool:
            with contextlib.suppress(aiohttp.ClientConnectionError):
                return f'vm_uuid="{guest.uuid}"' in await got(f"http://127.0.0.1:{port}/metrics")
            return False

        await until(watched, 30)
        page = await got(f"http://127.0.0.1:{port}/")
        for name in re.findall(r'(?:src|href)="(/page/[^"]+)"', page):
            assert await got(f"http://127.0.0.1:{port}{name}")
    finally:
        process.terminate()
        assert await process.wait() == 0


async def got(url: str) -> str:
    async with aiohttp.ClientSession() as session, session.get(url) as response:
        assert response.status == 200, url
        return await response.text()


@pytest.mark.parametrize("name", ["requirements", "build-requirements"])
def test_what_the_container_takes_is_pinned_by_hash_and_from_no_place_in_particular(name: str) -> None:
    text = (ROOT / f"deploy/container/{name}.txt").read_text()
    pins = re.findall(r"^(\S+?)==\S+ \\\n((?:    --hash=sha256:[0-9a-f]{64}(?: \\)?\n)+)", text, re.MULTILINE)
    wanted = re.findall(r"^\S+?==", text, re.MULTILINE)
    assert len(pins) == len(wanted) > 3
    assert not re.search(r"://|--(index|find|trusted|extra)", text)


def test_what_the_container_takes_is_what_the_package_asks_for() -> None:
    text = (ROOT / "deploy/container/requirements.txt").read_text()
    pinned = {name.lower().replace("_", "-") for name in re.findall(r"^(\S+?)==", text, re.MULTILINE)}
    asked = re.search(r"^dependencies = \[\n(.*?)^\]", (ROOT / "pyproject.toml").read_text(), re.MULTILINE | re.DOTALL)
    assert asked is not None
    assert {name.lower().replace("_", "-") for name in re.findall(r'^  "([\w.-]+)', asked[1], re.MULTILINE)} <= pinned
