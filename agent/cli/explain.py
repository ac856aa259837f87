"""`qmp-agent explain`: asks the running agent why a VM is slow or hangs, and prints the causes."""

from collections.abc import Iterator, Mapping
from typing import Any

from agent.cli.http_client import EndpointCredentials, request_json
from agent.model.record import sanitize

MAX_LINE = 600
"""Maximum length of a line in characters."""
SELF_EXPLANATORY_STATUSES = (400, 404, 409)
"""HTTP statuses of /explain whose response text is a complete error message."""


async def request_slow_vm_explanation(url: str, credentials: EndpointCredentials, vm: str) -> dict[str, Any]:
    """Ask the agent why a VM is slow or hangs, and return the answer's JSON.

    Args:
        url: URL of the agent's endpoint.
        credentials: credentials for the endpoint.
        vm: name or UUID of the VM.

    Raises:
        AgentRequestError: no agent answers, or the agent does not know the VM.
        EndpointCredentialsError: a file with credentials cannot be read.
    """
    return await request_json(
        credentials,
        "GET",
        url,
        "/explain",
        params={"vm": vm},
        self_explanatory_statuses=SELF_EXPLANATORY_STATUSES,
        required={"name": str, "uuid": str, "state": str, "summary": str, "causes": list},
    )


def explanation_lines(explanation: Mapping[str, Any]) -> Iterator[str]:
    """Yield the lines to print: the VM, then its causes, the most likely first."""
    yield sanitize(f"{explanation['name']} ({explanation['uuid']}), monitor {explanation['state']}", MAX_LINE)
    causes = explanation["causes"]
    if not causes:
        yield sanitize(explanation["summary"], MAX_LINE)
    for place, cause in enumerate(causes, 1):
        yield sanitize(f"{place}. {cause['sentence']}  [{cause['cause']}]", MAX_LINE)
