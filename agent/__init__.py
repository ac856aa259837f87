"""qmp-agent: watches every QEMU on a host over QMP and tells Kafka, Prometheus and people what it learns."""

from importlib.metadata import version

__version__ = version("qmp-agent")
