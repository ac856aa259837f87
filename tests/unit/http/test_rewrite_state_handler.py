"""The request that makes the agent write the state topic again: its answers and its refusals."""

from aiohttp.test_utils import TestClient
from aiohttp.web import Application, Request

from tests.lab.endpoint import FakeView

Client = TestClient[Request, Application]


async def test_a_rewrite_returns_the_number_of_states_and_soon_after_another_is_refused(
    client: Client, view: FakeView
) -> None:
    view.states = 7
    async with client.post("/rewrite-state", json={}) as response:
        assert (response.status, await response.json()) == (202, {"entities": 7})
    async with client.post("/rewrite-state", json={}) as response:
        assert response.status == 429
        assert 1 <= int(response.headers["Retry-After"]) <= 10
    assert view.rewrites == 1


async def test_a_page_of_another_site_cannot_request_a_rewrite(client: Client, view: FakeView) -> None:
    for content_type in ("text/plain", "application/x-www-form-urlencoded", "multipart/form-data"):
        async with client.post("/rewrite-state", data=b"{}", headers={"Content-Type": content_type}) as response:
            assert response.status == 415
    async with client.get("/rewrite-state") as response:
        assert response.status == 405
    assert view.rewrites == 0


async def test_a_rewrite_without_a_topic_of_states_names_the_config_key(client: Client, view: FakeView) -> None:
    view.states = None
    async with client.post("/rewrite-state", json={}) as response:
        assert response.status == 409
        assert "kafka.topics.state" in await response.text()
