"""`qmp-agent register-schemas` with a real registry, Apicurio."""

import json
from collections.abc import AsyncIterator
from copy import deepcopy
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer

from agent.cli.http_client import EndpointCredentials
from agent.cli.schema_registry import Registration, SchemaRegistryError, register_schemas, schema_registry_subject
from agent.model.record import Record, RecordEncoder, Vm
from agent.model.schema_versions import dataschema
from agent.schemas.data import published_data_schemas
from tests.lab.agent_process import run_command
from tests.lab.machine import free_port
from tests.lab.schema_registry import SchemaRegistry

ANONYMOUS = EndpointCredentials()
BALLOON = "qemu.sample.balloon"


@pytest.fixture
async def registry(folder: Path) -> AsyncIterator[SchemaRegistry]:
    async with SchemaRegistry(folder) as running:
        yield running


async def register(url: str, schema: dict[str, Any]) -> Registration:
    (registration,) = [done async for done in register_schemas(url, ANONYMOUS, {BALLOON: schema})]
    return registration


async def test_a_registry_gets_each_schema_once_and_only_compatible_ones(registry: SchemaRegistry) -> None:
    # The command registers all schemas, and again with the same ids.
    ended = await run_command("register-schemas", registry.url)
    assert ended.status == 0, ended.log
    lines = dict(line.split(": id ") for line in ended.out.splitlines())
    assert lines.keys() == {schema_registry_subject(name) for name in published_data_schemas()}
    assert set(await registry.get("/subjects")) == lines.keys()
    assert (await run_command("register-schemas", registry.url)).out == ended.out

    # A consumer finds the schema of a record by `dataschema`, and the record's data is valid.
    vm = Vm("hv7", "5bd1a5a4-5c0f-4d54-9d0b-7f2f4ad4d2e1", "web-3")
    event = json.loads(RecordEncoder()(Record(BALLOON, vm, {"actual_bytes": 5}, 0)).body)
    assert event["dataschema"] == dataschema(BALLOON) == "urn:qmp-agent:qemu.sample.balloon:1"
    subject = event["dataschema"].removeprefix("urn:qmp-agent:").replace(":", ".")
    registered = json.loads((await registry.get(f"/subjects/{subject}/versions/latest"))["schema"])
    jsonschema.Draft7Validator.check_schema(registered)
    jsonschema.Draft7Validator(registered).validate(event["data"])
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.Draft7Validator(registered).validate({"actual_bytes": "five"})

    # A later release may add a field, and may not change the type of one.
    later = deepcopy(published_data_schemas()[BALLOON])
    later["properties"]["added"] = {"type": "number"}
    assert (await register(registry.url, later)).id not in {None, int(lines[subject])}
    assert await registry.get(f"/subjects/{subject}/versions") == [1, 2]
    later["properties"]["actual_bytes"] = {"type": "string"}
    rejected = await register(registry.url, later)
    assert rejected.id is None
    assert "Incompatible" in rejected.error


async def test_a_server_that_is_no_registry_is_an_error() -> None:
    async def answer(request: web.Request) -> web.Response:
        return web.Response(text=request.match_info["answer"] * 2, status=int(request.match_info["status"]))

    app = web.Application()
    app.router.add_route("*", "/{status}/{answer}/{tail:.*}", answer)
    async with TestServer(app) as server:
        for path, error in (
            ("/200/x", "the response to subject qemu.sample.balloon.1 has no id"),
            ("/401/x", "HTTP 401 to GET /subjects/qemu.sample.balloon.1/versions"),
            ("/302/x", "HTTP 302"),
        ):
            with pytest.raises(SchemaRegistryError, match=error):
                await register(str(server.make_url(path)), {})
    with pytest.raises(SchemaRegistryError, match="Cannot connect"):
        await register(f"http://127.0.0.1:{free_port()}", {})
