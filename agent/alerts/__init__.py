"""Alerts that events and samples fire and resolve, and the write thresholds that detect a filling disk."""
