"""`qmp-agent resync`: has the running agent write the whole state topic again."""

import aiohttp

from agent.cli.http_client import EndpointCredentials
from agent.common.errors import SubcommandError

REQUEST_SECONDS = 10.0
"""Timeout of the request."""


class ResyncError(SubcommandError):
    """The agent cannot be reached, or refuses the request."""


async def resync(url: str, credentials: EndpointCredentials) -> int:
    """Request the resync and return the number of states that the agent writes again.

    Args:
        url: URL of the agent's endpoint.
        credentials: credentials for the endpoint.

    Raises:
        ResyncError: no agent answers, or it refuses the request.
        EndpointCredentialsError: a file with credentials cannot be read.
    """
    timeout = aiohttp.ClientTimeout(total=REQUEST_SECONDS)
    try:
        async with (
            credentials.open_session(timeout=timeout) as session,
            session.post(f"{url}/resync", json={}) as response,
        ):
            if response.status != 202:
                raise ResyncError(f"{url}: HTTP {response.status}: {(await response.text()).strip()}")
            return int((await response.json())["entities"])
    except (aiohttp.ClientError, TimeoutError, KeyError, ValueError) as error:
        raise ResyncError(f"no agent answers at {url}: {error}; is it running with this web.listen_address?") from error
