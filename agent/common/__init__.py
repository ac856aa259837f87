"""Helpers that import no other package of the agent: errors, backoff, units, types of config values, safe XML."""
