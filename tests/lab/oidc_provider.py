"""Runs a real OpenID provider, the npm package oidc-provider. Its token endpoint authenticates clients and signs tokens."""

import contextlib
import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Final, Self

import aiohttp

from agent.cli.demo.images import MissingDependencyError, build_directory_once, cache_directory
from tests.lab.machine import free_port, require
from tests.lab.waiting import until

SOURCE: Final = Path(__file__).parent / "oidc"
CLIENT, SECRET, AUDIENCE = "hv7", "client/secret", "urn:kafka"
_START_SECONDS: Final = 180.0


class OidcProvider:
    """An OpenID provider with one client. As an async context manager, it runs while the block runs.

    Attributes:
        issuer: the URL of the provider, which is the issuer of its tokens.
        token_url: the URL of the token endpoint.
        keys_url: the URL of the keys that verify tokens.
        lifetime: seconds until a token expires.
    """

    def __init__(self, lifetime: int) -> None:
        self._port = free_port()
        self.lifetime = lifetime
        self.issuer = f"http://127.0.0.1:{self._port}"
        self.token_url = f"{self.issuer}/token"
        self.keys_url = f"{self.issuer}/jwks"
        self._process: subprocess.Popen[bytes] | None = None

    async def start(self) -> None:
        """Start the provider, and wait until it answers.

        Raises:
            MissingDependencyError: Node.js or npm is missing, or npm cannot fetch the package.
        """
        require("node", "Node.js")
        client = {"client_id": CLIENT, "client_secret": SECRET}
        config = {"port": self._port, "lifetime": self.lifetime, "clients": [client], "audience": AUDIENCE}
        command = ["setpriv", "--pdeathsig", "KILL", "node", "server.mjs", json.dumps(config)]
        self._process = subprocess.Popen(  # noqa: ASYNC220 - the fork takes no time
            command, cwd=_provider_home(), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )

        async def answers() -> bool:
            with contextlib.suppress(aiohttp.ClientConnectionError):
                async with aiohttp.ClientSession() as session, session.get(self.keys_url) as response:
                    return response.status == 200
            return False

        try:
            await until(answers, _START_SECONDS)
        except BaseException:
            self.stop()
            raise

    def stop(self) -> None:
        """Kill the provider."""
        process, self._process = self._process, None
        if process is not None:
            process.kill()
            process.wait()

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        self.stop()


def _provider_home() -> Path:
    """Return the directory of the provider's program. The first call downloads its packages in a few seconds. Blocks."""
    version = re.search(r'"oidc-provider": "([^"]+)"', (SOURCE / "package.json").read_text())
    assert version is not None
    home = build_directory_once(cache_directory() / f"oidc-provider-{version[1]}", _fetch)
    shutil.copy(SOURCE / "server.mjs", home)  # the current version
    return home


def _fetch(scratch: Path) -> None:
    require("npm", "npm")
    shutil.copytree(SOURCE, scratch / "built")
    command = ["npm", "install", "--no-audit", "--no-fund", "--no-package-lock", "--ignore-scripts"]
    done = subprocess.run(command, check=False, cwd=scratch / "built", capture_output=True, text=True)
    if done.returncode:
        raise MissingDependencyError(f"npm cannot fetch oidc-provider: {done.stderr[-500:]}")
