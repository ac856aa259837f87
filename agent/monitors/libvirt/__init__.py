"""Domains over libvirt: the config's entry, their list and events (way), a link to each (domain), its answers (words, figures), wire."""
