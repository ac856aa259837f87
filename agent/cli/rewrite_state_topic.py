"""`qmp-agent rewrite-state`: makes the running agent write the whole state topic again."""

from agent.cli.http_client import EndpointCredentials, request_json


async def request_state_rewrite(url: str, credentials: EndpointCredentials) -> int:
    """Ask the agent to rewrite the state topic, and return the number of states that the agent will write.

    Args:
        url: URL of the agent's endpoint.
        credentials: credentials for the endpoint.

    Raises:
        AgentRequestError: no agent answers, or the agent refuses the request.
        EndpointCredentialsError: a file with credentials cannot be read.
    """
    required = {"entities": int}
    answer = await request_json(
        credentials, "POST", url, "/rewrite-state", body={}, expected_status=202, required=required
    )
    return int(answer["entities"])
