"""Alert rules on samples and events: the tables of built-in rules, and the code that evaluates all rules. Pure.

Start at `rows`, which defines a rule, and at the two tables, `sample_alert_table` and `event_alert_table`. Each custom alert in the config
is also a rule.
"""
