"""HTTP client of `qmp-agent tail` and `top`, with credentials for an endpoint that requires authentication."""

import base64
import ssl
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp

from agent.common.errors import SubcommandError


class EndpointCredentialsError(SubcommandError):
    """A file with credentials cannot be read."""


@dataclass(frozen=True, slots=True)
class EndpointCredentials:
    """Credentials for the agent's endpoint.

    Attributes:
        ca: file with the certificate authorities of the endpoint; None for those of the system.
        certificate: file with the client's certificate and its key, or None.
        user: the user name; empty for no authentication by password.
        password_file: file whose first line is the password. No option takes the password itself, because every user of the host can
            read the command lines of processes.
    """

    ca: Path | None = None
    certificate: Path | None = None
    user: str = ""
    password_file: Path | None = None

    def open_session(self, **options: Any) -> aiohttp.ClientSession:
        """Return an HTTP session with these credentials.

        Args:
            options: further arguments of aiohttp.ClientSession.

        Raises:
            EndpointCredentialsError: a file cannot be read, or is no certificate or text.
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
