"""Writes the JSON of each dashboard to dashboards/."""

from pathlib import Path

from dashboards import DASHBOARDS

for dashboard in DASHBOARDS:
    Path(__file__).with_name(f"{dashboard.uid}.json").write_text(dashboard.json() + "\n")
