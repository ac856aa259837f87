"""Domains over libvirt: their list and events (way), a link to each (domain), its answers (words, figures), the library (wire)."""

from agent.monitors.libvirt.way import Libvirt, LibvirtConfig

__all__ = ["Libvirt", "LibvirtConfig"]
