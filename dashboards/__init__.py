"""Grafana dashboards as code. `python -m dashboards` writes the JSON files."""

from dashboards.agent import AGENT
from dashboards.alerts import ALERTS
from dashboards.fleet import FLEET
from dashboards.guests import GUESTS
from dashboards.host import HOST
from dashboards.kubevirt import KUBEVIRT
from dashboards.migrations import MIGRATIONS
from dashboards.storage import STORAGE
from dashboards.thin import THIN
from dashboards.vm import VM

DASHBOARDS = (FLEET, HOST, VM, ALERTS, GUESTS, THIN, STORAGE, MIGRATIONS, KUBEVIRT, AGENT)
