"""HTTP client of the subcommands that query the running agent, with TLS and basic authentication.

The client sends HTTP/1.0 requests, each on a new connection. The client uses asyncio instead of aiohttp. Subcommands would take twice as
long to start with aiohttp.
"""

import asyncio
import base64
import contextlib
import json
import os
import ssl
from collections.abc import AsyncIterator, Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any
from urllib.parse import urlencode, urlsplit

from agent.common.errors import SubcommandError

if TYPE_CHECKING:
    import aiohttp

REQUEST_SECONDS = 10.0
"""Timeout of a request in seconds."""
MAX_LINE_BYTES = 8 * 1024 * 1024
"""Maximum number of bytes of a line in a response. A record can have several megabytes."""
MAX_ERROR_CHARACTERS = 200
"""Maximum number of characters of a response that an error message quotes."""

REQUEST_ERRORS = (OSError, EOFError, ValueError, asyncio.LimitOverrunError)
"""Exceptions of a request that no agent answers, or whose response is not HTTP."""


class AgentRequestError(SubcommandError):
    """No agent answers, or the agent rejects the request."""


class EndpointCredentialsError(SubcommandError):
    """A file with credentials cannot be read."""


@dataclass(frozen=True, slots=True)
class EndpointCredentials:
    """Credentials for the agent's endpoint.

    Attributes:
        ca: file with the endpoint's certificate authorities; None for the system's certificate authorities.
        certificate: file with the client's certificate and its key, or None.
        user: the user name; empty for no basic authentication.
        password_file: file whose first line is the password. Subcommands have no option for the password itself, because every user of
            the host can read command lines.
    """

    ca: Path | None = None
    certificate: Path | None = None
    user: str = ""
    password_file: Path | None = None

    def tls_context(self) -> ssl.SSLContext:
        """Return a TLS context with these certificates.

        Raises:
            EndpointCredentialsError: a file cannot be read, or is not a certificate.
        """
        try:
            context = ssl.create_default_context(cafile=self.ca)
            if self.certificate is not None:
                context.load_cert_chain(self.certificate, password=lambda: "")
        except OSError as error:
            file = error.filename or self.certificate or self.ca
            raise EndpointCredentialsError(f"{file}: {error.strerror or error}") from error
        return context

    def authorization_headers(self) -> dict[str, str]:
        """Return the header for basic authentication; empty without a user name.

        Raises:
            EndpointCredentialsError: the password file cannot be read, or is not UTF-8.
        """
        try:
            password = self.password_file.read_text("utf-8") if self.password_file is not None else ""
        except (OSError, UnicodeDecodeError) as error:
            raise EndpointCredentialsError(
                f"{self.password_file}: {getattr(error, 'strerror', None) or error}"
            ) from error
        if not self.user:
            return {}
        basic = f"{self.user}:{password.partition(chr(10))[0]}"
        return {"Authorization": f"Basic {base64.b64encode(basic.encode()).decode()}"}

    def open_aiohttp_session(self, **options: Any) -> "aiohttp.ClientSession":
        """Return a session of aiohttp with these credentials.

        Args:
            options: further arguments of aiohttp.ClientSession. The default timeout is `REQUEST_SECONDS`.

        Raises:
            EndpointCredentialsError: a file cannot be read, or is not a certificate or UTF-8.
        """
        import aiohttp  # noqa: PLC0415 - takes longer to import than most subcommands take to run

        options.setdefault("timeout", aiohttp.ClientTimeout(total=REQUEST_SECONDS))
        connector = aiohttp.TCPConnector(ssl=self.tls_context())
        return aiohttp.ClientSession(connector=connector, headers=self.authorization_headers(), **options)


@dataclass(frozen=True, slots=True)
class EndpointResponse:
    """A response whose body has not been read yet.

    Attributes:
        status: the HTTP status, such as 200.
        body: the body, which ends when the connection ends.
        length: number of bytes of the body; None if the response has no Content-Length.
    """

    status: int
    body: asyncio.StreamReader
    length: int | None

    async def read(self) -> bytes:
        """Return the whole body.

        Raises:
            EOFError: the connection ended before the end of the body.
        """
        return await (self.body.read() if self.length is None else self.body.readexactly(self.length))

    async def text(self) -> str:
        """Return the whole body as text."""
        return (await self.read()).decode("utf-8", "replace")


@contextlib.asynccontextmanager
async def open_response(
    credentials: EndpointCredentials,
    method: str,
    url: str,
    path: str,
    *,
    params: Mapping[str, str] | None = None,
    body: Any = None,
    seconds: float = REQUEST_SECONDS,
) -> AsyncIterator[EndpointResponse]:
    """Send a request, and yield the response. Close the connection at the end of the `with` block.

    Args:
        credentials: credentials for the endpoint.
        method: the method, such as `GET`.
        url: URL of the endpoint.
        path: path of the request, beginning with a slash.
        params: parameters in the query of the URL.
        body: a JSON value to send; None for no body.
        seconds: timeout in seconds for connecting, and again for the response's header.

    Raises:
        EndpointCredentialsError: a file with credentials cannot be read.
        OSError, EOFError, ValueError, asyncio.LimitOverrunError: no agent answers, or the response is not HTTP.
    """
    target = urlsplit(url)
    if target.scheme not in ("http", "https") or not target.hostname:
        raise ValueError("not a URL of http or https")
    is_tls = target.scheme == "https"
    tls = credentials.tls_context() if is_tls or credentials.ca or credentials.certificate else None
    data = b"" if body is None else json.dumps(body).encode()
    headers = {"Host": target.netloc.rpartition("@")[2], "Content-Type": "application/json"}
    headers |= credentials.authorization_headers() | {"Content-Length": str(len(data))}
    query = f"?{urlencode(params)}" if params else ""
    lines = [f"{method} {target.path}{path}{query} HTTP/1.0", *(f"{name}: {value}" for name, value in headers.items())]
    async with asyncio.timeout(seconds):
        reader, writer = await asyncio.open_connection(
            target.hostname,
            target.port or (443 if is_tls else 80),
            ssl=tls if is_tls else None,
            limit=MAX_LINE_BYTES,
        )
    try:
        async with asyncio.timeout(seconds):
            writer.write("\r\n".join([*lines, "", ""]).encode() + data)
            response = _parse_head(await reader.readuntil(b"\r\n\r\n"), reader)
        yield response
    finally:
        writer.transport.abort()


def _parse_head(head: bytes, body: asyncio.StreamReader) -> EndpointResponse:
    status, *lines = head.decode("latin-1").split("\r\n")
    version, _, code = status.partition(" ")
    if not version.startswith("HTTP/1.") or not code[:3].isdecimal():
        raise ValueError("the response is not HTTP")
    headers = {name.strip().lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
    length = headers.get("content-length")
    return EndpointResponse(int(code[:3]), body, int(length) if length is not None else None)


async def request_json(
    credentials: EndpointCredentials,
    method: str,
    url: str,
    path: str,
    *,
    params: Mapping[str, str] | None = None,
    body: Any = None,
    expected_status: int = 200,
    self_explanatory_statuses: Collection[int] = (),
    required: Mapping[str, type] = MappingProxyType({}),
    seconds: float = REQUEST_SECONDS,
) -> dict[str, Any]:
    """Send a request to the agent's endpoint and return the JSON object in its answer.

    Args:
        credentials: credentials for the endpoint.
        method: the method, such as `GET`.
        url: URL of the endpoint.
        path: path of the request, beginning with a slash.
        params: parameters in the query of the URL.
        body: a JSON value to send; None for no body.
        expected_status: the status of a successful answer.
        self_explanatory_statuses: statuses whose response text is a complete error message.
        required: members that the answer has to have, and the type of each member.
        seconds: timeout of the request in seconds.

    Raises:
        AgentRequestError: no agent answers, or the answer has another status, is no JSON object, or lacks a required member.
        EndpointCredentialsError: a file with credentials cannot be read.
    """
    request = open_response(credentials, method, url, path, params=params, body=body, seconds=seconds)
    try:
        async with asyncio.timeout(seconds), request as response:
            text = await response.text()
        if response.status == expected_status:
            return _require_members(url, json.loads(text), required)
    except REQUEST_ERRORS as error:
        cause = os.strerror(error.errno) if isinstance(error, OSError) and error.errno else str(error) or "timeout"
        raise AgentRequestError(
            f"no agent answers at {url}: {cause}; is it running with this web.listen_address?"
        ) from error
    text = text.strip()[:MAX_ERROR_CHARACTERS]
    if text.startswith("<"):
        text = "the answer is a web page, so the server is not qmp-agent"
    raise AgentRequestError(
        text if response.status in self_explanatory_statuses else f"{url}: HTTP {response.status}: {text}"
    )


def find_vm_uuid_in_overview(overview: Mapping[str, Any], name: str) -> str:
    """Look up a VM by name or UUID in the answer of /overview. Return the VM's UUID; empty if no VM matches."""
    return next((uuid for uuid, vm in overview["vms"].items() if name in (uuid, vm["name"])), "")


def _require_members(url: str, answer: Any, required: Mapping[str, type]) -> dict[str, Any]:
    """Return an answer that is a JSON object with the required members.

    Raises:
        AgentRequestError: the answer is another value, so the server is not an agent.
    """
    if isinstance(answer, dict) and all(isinstance(answer.get(name), kind) for name, kind in required.items()):
        return answer
    raise AgentRequestError(f"{url}: the server is another program: its answer is not the agent's")
