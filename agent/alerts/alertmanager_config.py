"""The config section of the client of Prometheus' Alertmanager."""

import re
from typing import Annotated

from pydantic import AfterValidator, Field, WithJsonSchema

from agent.alerts.alertmanager_request import AlertmanagerSettings
from agent.common.config_types import PositiveSeconds, Seconds
from agent.common.http_credentials import HttpClientConfig

_URL_PATTERN = r"^https?://[^/]+(/.*)?$"


def _check_url(value: str) -> str:
    if re.match(_URL_PATTERN, value) is None:
        raise ValueError('should be a URL such as "http://127.0.0.1:9093"')
    return value


class AlertmanagerConfig(HttpClientConfig):
    """Sends alerts to Prometheus' Alertmanager directly, without Prometheus."""

    urls: Annotated[
        list[Annotated[str, AfterValidator(_check_url), WithJsonSchema({"type": "string", "pattern": _URL_PATTERN})]],
        Field(min_length=1, max_length=20),
    ]
    """URLs of all members of a high-availability set, without /api/v2. Each member receives every alert."""
    resend_interval: Annotated[Seconds, Field(ge=1)] = 60.0
    """How often the agent sends firing alerts again. Alertmanager resolves an alert that it does not receive for four intervals."""
    labels: dict[str, str] = {}
    """Labels to add to every alert, such as {cluster: eu1}."""
    watchdog: PositiveSeconds | None = None
    """How long the alert `agent_lost` may fire after the agent's last request. By default, this alert never fires.

    The alert needs two inhibition rules: docs/how-to/alertmanager.md.
    """

    def settings(self) -> AlertmanagerSettings:
        """Return the settings of requests to Alertmanager."""
        return AlertmanagerSettings(self.resend_interval, self.labels, self.watchdog)
