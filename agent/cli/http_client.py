"""HTTP sessions of the agent's own commands, with credentials for a protected endpoint."""

import base64
import ssl
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp

from agent.common.errors import CommandFailedError


class EndpointCredentialsError(CommandFailedError):
    """The credentials cannot be read."""


@dataclass(frozen=True, slots=True)
class EndpointCredentials:
    """Credentials for the endpoint.

    Attributes:
        ca: file with the authorities that sign the endpoint's certificate; None trusts the system's.
        certificate: file with the client certificate and its key, or None.
        user: the user name, or empty.
        password_file: file whose first line is the password. There is no option for the password itself, because every user of the
            host can read the command lines of processes.
    """

    ca: Path | None = None
    certificate: Path | None = None
    user: str = ""
    password_file: Path | None = None

    def session(self, **options: Any) -> aiohttp.ClientSession:
        """Return a session with these credentials.

        Raises:
            EndpointCredentialsError: a file does not exist or has the wrong content.
        """
        try:
            context = ssl.create_default_context(cafile=self.ca)
            if self.certificate is not None:
                context.load_cert_chain(self.certificate, password=lambda: "")
            password = self.password_file.read_text("utf-8") if self.password_file is not None else ""
        except (OSError, UnicodeDecodeError) as error:
            file = getattr(error, "filename", None) or self.certificate or self.ca
            raise EndpointCredentialsError(f"{file}: {getattr(error, 'strerror', None) or error}") from error
        headers = {}
        if self.user:
            basic = f"{self.user}:{password.partition(chr(10))[0]}"
            headers["Authorization"] = f"Basic {base64.b64encode(basic.encode()).decode()}"
        return aiohttp.ClientSession(connector=aiohttp.TCPConnector(ssl=context), headers=headers, **options)
