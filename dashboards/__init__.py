"""Grafana dashboards as code, and the JSON that they make: `python -m dashboards` writes it."""

from dashboards.agent import AGENT
from dashboards.fleet import FLEET
from dashboards.host import HOST
from dashboards.migrations import MIGRATIONS
from dashboards.thin import THIN
from dashboards.vm import VM

DASHBOARDS = (FLEET, HOST, VM, THIN, MIGRATIONS, AGENT)
