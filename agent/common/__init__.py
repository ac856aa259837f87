"""Helpers that import no other package of the agent: errors, back-off, units, types of config values, safe XML.

Each module stands alone, so there is no place to start. A helper that only one package needs belongs to that package.
"""
