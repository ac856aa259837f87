"""qmp-agent: watches every QEMU on a host over QMP and reports to Kafka, Prometheus, a web page and a terminal."""

from importlib.metadata import version

__version__ = version("qmp-agent")
