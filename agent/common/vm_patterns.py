"""Matches VMs against the patterns in the config. Pure."""

from fnmatch import fnmatchcase


def matches_vm(pattern: str, name: str, uuid: str) -> bool:
    """Return whether a pattern with the wildcards * and ? matches a VM's name or its UUID."""
    return fnmatchcase(name, pattern) or fnmatchcase(uuid, pattern)
