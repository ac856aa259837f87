"""Alert rules on samples and events: the tables of built-in rules, and the code that evaluates all rules. Pure.

Start at `rule_types`, which defines a rule, and at the two tables, `sample_rules` and `event_rules`. Each custom alert in the config
is also a rule.
"""
