"""Generators for checked-in files; not part of the wheel."""
