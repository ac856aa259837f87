"""Prometheus rules: alerts, and recording rules with other exporters' names."""
