"""`qmp-agent register-schemas`: registers the schemas of records in a schema registry with Confluent's API.

Each version of a schema has its own subject (a name in the registry): `urn:qmp-agent:qemu.sample.block:1` becomes `qemu.sample.block.1`.
A new subject gets the compatibility FORWARD: a later release may add fields, and older consumers can still read the data.
"""

from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from typing import Any, Final
from urllib.parse import quote

import aiohttp
import orjson

from agent.cli.http_client import EndpointCredentials
from agent.common.errors import SubcommandError
from agent.model.record import sanitize
from agent.model.schema_versions import schema_uri
from agent.schemas.data import published_data_schemas

REQUEST_SECONDS = 30.0
"""Timeout of one request in seconds."""
MAX_RESPONSE_BYTES = 1 << 20
"""Maximum size of a response in bytes."""
DIALECT: Final = "http://json-schema.org/draft-07/schema#"
"""JSON Schema dialect of the registered schemas: the newest dialect that all registries can check for compatibility."""
COMPATIBILITY: Final = "FORWARD"
"""Compatibility mode of a new subject."""


class SchemaRegistryError(SubcommandError):
    """The registry does not respond, or its response is not valid."""


@dataclass(frozen=True, slots=True)
class Registration:
    """The outcome of the registration of one schema.

    Attributes:
        subject: the subject in the registry.
        id: the schema's id in the registry; None if the registry rejects the schema.
        error: why the registry rejects the schema; empty if the registry accepts the schema.
    """

    subject: str
    id: int | None
    error: str = ""


def schema_registry_subject(name: str) -> str:
    """Return the subject of the current version of a schema, such as `qemu.sample.block.1`."""
    return schema_uri(name).removeprefix("urn:qmp-agent:").replace(":", ".")


async def register_schemas(
    url: str, credentials: EndpointCredentials, schemas: Mapping[str, Mapping[str, Any]] | None = None
) -> AsyncIterator[Registration]:
    """Register schemas, and yield the outcome for each schema. A schema that is already registered keeps its id.

    Args:
        url: the URL of the registry's API, such as http://registry:8081.
        credentials: the credentials for the registry.
        schemas: the schemas by name; None for the schemas of this agent version.

    Raises:
        SchemaRegistryError: the registry does not respond, or its response is not valid.
        EndpointCredentialsError: a file with credentials cannot be read.
    """
    timeout = aiohttp.ClientTimeout(total=REQUEST_SECONDS)
    async with credentials.open_aiohttp_session(timeout=timeout) as session:
        registry = _Registry(session, url.rstrip("/"))
        for name, schema in (published_data_schemas() if schemas is None else schemas).items():
            yield await registry.register(schema_registry_subject(name), {**schema, "$schema": DIALECT})


class _Registry:
    def __init__(self, session: aiohttp.ClientSession, url: str) -> None:
        self._session = session
        self._url = url

    async def register(self, subject: str, schema: Mapping[str, Any]) -> Registration:
        path = quote(subject, safe="")
        status, _ = await self._request("GET", f"/subjects/{path}/versions")
        if status == 404:
            await self._request("PUT", f"/config/{path}", {"compatibility": COMPATIBILITY})
        body = {"schemaType": "JSON", "schema": orjson.dumps(schema).decode()}
        status, response = await self._request("POST", f"/subjects/{path}/versions", body)
        if status in {409, 422}:
            return Registration(subject, None, sanitize(str(response.get("message")), 500))
        if type(schema_id := response.get("id")) is not int:
            raise SchemaRegistryError(f"{self._url}: the response to subject {subject} has no id")
        return Registration(subject, schema_id)

    async def _request(self, method: str, path: str, body: object = None) -> tuple[int, dict[str, Any]]:
        """Send a request, and return the status and the JSON object of the response. The statuses 404, 409 and 422 raise no error."""
        options: dict[str, Any] = {} if body is None else {"data": orjson.dumps(body)}
        headers = {"Content-Type": "application/vnd.schemaregistry.v1+json"}
        try:
            async with self._session.request(
                method, self._url + path, headers=headers, allow_redirects=False, **options
            ) as response:
                received = bytearray()
                async for chunk in response.content.iter_chunked(1 << 16):
                    received += chunk
                    if len(received) > MAX_RESPONSE_BYTES:
                        raise SchemaRegistryError(f"{self._url}: the response to {method} {path} is too large")
        except (TimeoutError, aiohttp.ClientError, OSError) as error:
            raise SchemaRegistryError(f"{self._url}: {error or 'no response in time'}") from error
        try:
            value = orjson.loads(received)
        except ValueError:
            value = None
        content = value if isinstance(value, dict) else {}
        if response.status != 200 and response.status not in {404, 409, 422}:
            cause = sanitize(str(content.get("message", "")), 500)
            raise SchemaRegistryError(
                f"{self._url}: HTTP {response.status} to {method} {path}: {cause}".removesuffix(": ")
            )
        return response.status, content
