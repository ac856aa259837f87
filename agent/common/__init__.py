"""Helpers that import no other package of the agent: errors, back-off, units, types of config values, safe XML.

Start at `durations_and_sizes`. `config_types` uses `durations_and_sizes`, `client_tls` uses `config_types`, and `http_credentials` uses
both. Each other module stands alone. A helper that only one package needs belongs to that package.
"""
