"""How our own commands visit an endpoint that asks who they are."""

import base64
import ssl
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp

from agent.common.errors import CommandFailedError


class EndpointCredentialsError(CommandFailedError):
    """What the visitor should show cannot be had; the text says why, for people."""


@dataclass(frozen=True, slots=True)
class EndpointCredentials:
    """What a visitor shows.

    Attributes:
        ca: the authorities that vouch for the endpoint; None trusts the system's.
        certificate: the visitor's own certificate with its key.
        user: its name.
        password_file: a file whose first line is its password; never the password itself, which every user of the host could read in
            the list of processes.
    """

    ca: Path | None = None
    certificate: Path | None = None
    user: str = ""
    password_file: Path | None = None

    def session(self, **more: Any) -> aiohttp.ClientSession:
        """Return a session that shows it.

        Raises:
            VisitError: a file is not there, or is not what it should be.
        """
        try:
            context = ssl.create_default_context(cafile=self.ca)
            if self.certificate is not None:
                context.load_cert_chain(self.certificate, password=lambda: "")
            secret = self.password_file.read_text("utf-8") if self.password_file is not None else ""
        except (OSError, UnicodeDecodeError) as error:
            where = getattr(error, "filename", None) or self.certificate or self.ca
            raise EndpointCredentialsError(f"{where}: {getattr(error, 'strerror', None) or error}") from error
        headers = {}
        if self.user:
            both = f"{self.user}:{secret.partition(chr(10))[0]}"
            headers["Authorization"] = f"Basic {base64.b64encode(both.encode()).decode()}"
        return aiohttp.ClientSession(connector=aiohttp.TCPConnector(ssl=context), headers=headers, **more)
