"""Deployment files, and the generator of the recording rules for other exporters' names."""
