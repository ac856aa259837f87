"""Manifests for Kubernetes, and the generator of one of them."""
