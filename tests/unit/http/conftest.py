"""An endpoint with a view whose values a test sets, and a client of it."""

from collections.abc import AsyncIterator

import pytest
from aiohttp.test_utils import TestClient, TestServer
from aiohttp.web import Application, Request

from agent.http.handlers import create_application
from tests.lab.endpoint import FakeView


@pytest.fixture
def view() -> FakeView:
    return FakeView()


@pytest.fixture
async def client(view: FakeView) -> AsyncIterator[TestClient[Request, Application]]:
    async with TestClient(TestServer(create_application(view))) as client:
        yield client
