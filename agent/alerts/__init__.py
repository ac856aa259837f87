"""Alerts made of events and samples: what fires, what resolves it, and the write thresholds that detect it."""
