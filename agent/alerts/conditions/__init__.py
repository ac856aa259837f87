"""Alerts from tables: a row for each condition on samples or events. Custom alerts of the config are also rows.

Start at `rows`, which defines a row, and at the two tables, `sample_alert_table` and `event_alert_table`. Pure.
"""
