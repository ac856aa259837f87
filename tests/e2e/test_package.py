"""The wheel and the sdist of this source, installed into an empty virtual environment."""

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

from tests.lab.fixtures import StartGuest
from tests.lab.machine import free_port
from tests.lab.waiting import until

ROOT: Final = Path(__file__).parents[2]

pytestmark = pytest.mark.timeout(600)  # for a slow package index


def build(source: Path, *arguments: str) -> None:
    """Run hatchling in a source tree. By default, the results go to dist/ in this tree."""
    subprocess.run(
        [sys.executable, "-m", "hatchling", "build", *arguments],
        cwd=source,
        check=True,
        capture_output=True,
        timeout=300,
    )


@pytest.fixture(scope="module")
def dist(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A directory with a wheel and an sdist of this source."""
    folder = tmp_path_factory.mktemp("dist")
    build(ROOT, "-d", str(folder))
    yield folder


def wheel_files(wheel: Path) -> dict[str, bytes]:
    with zipfile.ZipFile(wheel) as opened:
        return {name: opened.read(name) for name in opened.namelist() if not name.endswith("/RECORD")}


def test_a_wheel_has_all_files_of_the_package_and_no_others(dist: Path) -> None:
    (wheel,) = dist.glob("*.whl")
    tracked = subprocess.run(["git", "ls-files", "agent"], cwd=ROOT, check=True, capture_output=True, text=True).stdout
    inside = {name for name in wheel_files(wheel) if not re.match(r"qmp_agent-[^/]+\.dist-info/", name)}
    assert set(tracked.split()) <= inside
    assert {name.split("/")[0] for name in inside} == {"agent"}
    assert {"agent/py.typed", "agent/http/page/index.html", "agent/http/page/main.js"} <= inside


def test_the_sdist_builds_the_same_wheel(dist: Path, tmp_path: Path) -> None:
    (sdist,) = dist.glob("*.tar.gz")
    with tarfile.open(sdist) as opened:
        opened.extractall(tmp_path, filter="data")
    (source,) = tmp_path.iterdir()
    build(source, "-t", "wheel")
    (from_sdist,), (from_source,) = (source / "dist").glob("*.whl"), dist.glob("*.whl")
    assert wheel_files(from_sdist) == wheel_files(from_source)


@pytest.fixture(scope="module")
def installed(dist: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The `bin` directory of an empty virtual environment into which the wheel was installed."""
    folder = tmp_path_factory.mktemp("bare")
    venv.create(folder, with_pip=False)
    (wheel,) = dist.glob("*.whl")
    subprocess.run(
        [sys.executable, "-m", "pip", f"--python={folder}/bin/python", "install", "-q", "--no-compile", wheel],
        check=True,
        timeout=500,
    )
    return folder / "bin"


def output(*command: str | Path) -> str:
    return subprocess.run(command, check=True, capture_output=True, text=True, timeout=60, cwd="/").stdout


def test_an_installed_wheel_has_the_version_in_its_name(dist: Path, installed: Path) -> None:
    (wheel,) = dist.glob("*.whl")
    version = wheel.name.split("-")[1]
    assert output(installed / "qmp-agent", "--version") == f"qmp-agent {version}\n"


async def test_an_installed_wheel_watches_a_guest_and_serves_the_page(
    installed: Path, start_guest: StartGuest, folder: Path
) -> None:
    command = installed / "qmp-agent"
    guest = await start_guest("web-3")
    port = free_port()
    config = folder / "agent.yaml"
    settings = {"monitors": [{"dial": str(guest.monitor)}], "web": {"listen_address": f"127.0.0.1:{port}"}}
    config.write_text(json.dumps(settings))
    assert "the config is valid" in output(command, "check", "--syntax", "--config", config)
    process = await asyncio.create_subprocess_exec(
        *("setpriv", "--pdeathsig", "KILL", command, "run", "--config", config),
        stdout=asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.DEVNULL,
        cwd="/",
    )
    try:

        async def exports_guest() -> bool:
            with contextlib.suppress(aiohttp.ClientConnectionError):
                return f'vm_uuid="{guest.uuid}"' in await get(f"http://127.0.0.1:{port}/metrics")
            return False

        await until(exports_guest)
        page = await get(f"http://127.0.0.1:{port}/")
        for name in re.findall(r'(?:src|href)="(/page/[^"]+)"', page):
            assert await get(f"http://127.0.0.1:{port}{name}")
    finally:
        process.terminate()
        assert await process.wait() == 0


async def get(url: str) -> str:
    async with aiohttp.ClientSession() as session, session.get(url) as response:
        assert response.status == 200, url
        return await response.text()


@pytest.mark.parametrize("name", ["requirements", "build-requirements"])
def test_the_containers_requirements_are_pinned_by_hash_and_name_no_index(name: str) -> None:
    text = (ROOT / f"deploy/container/{name}.txt").read_text()
    pins = re.findall(r"^(\S+?)==\S+ \\\n((?:    --hash=sha256:[0-9a-f]{64}(?: \\)?\n)+)", text, re.MULTILINE)
    requirements = re.findall(r"^\S+?==", text, re.MULTILINE)
    assert len(pins) == len(requirements) > 3
    assert not re.search(r"://|--(index|find|trusted|extra)", text)


def test_the_containers_requirements_cover_the_packages_dependencies() -> None:
    text = (ROOT / "deploy/container/requirements.txt").read_text()
    pinned = {name.lower().replace("_", "-") for name in re.findall(r"^(\S+?)==", text, re.MULTILINE)}
    dependencies = re.search(
        r"^dependencies = \[\n(.*?)^\]", (ROOT / "pyproject.toml").read_text(), re.MULTILINE | re.DOTALL
    )
    assert dependencies is not None
    assert {
        name.lower().replace("_", "-") for name in re.findall(r'^  "([\w.-]+)', dependencies[1], re.MULTILINE)
    } <= pinned
