"""qmp-agent: watches every QEMU on a host over QMP and reports to Kafka, Prometheus, a web page and a terminal.

Start at `app.agent`, which builds and runs every part, or at `cli.main`, the command. docs/explanation/architecture.md has the packages and
the layers that they form.
"""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    __version__: str


def __getattr__(name: str) -> str:
    """Return `__version__` from the package's metadata. Import the reader of the metadata late, because its import is slow."""
    if name != "__version__":
        raise AttributeError(name)
    from importlib.metadata import version  # noqa: PLC0415 - as above

    return version("qmp-agent")
