"""Paths of images on QEMU's command line. The agent uses these paths until QEMU answers queries. Pure."""

import re
from collections.abc import Iterable, Sequence

MAX_PATHS = 256

_PATH = re.compile(r'(?:^|[=":])(/(?!/)[^",]+)')
_PREFIXES_WITHOUT_IMAGES = ("/dev/", "/proc/", "/sys/", "/run/", "/usr/")


def command_line_image_paths(argv: Iterable[str]) -> Sequence[str]:
    """Return the absolute paths on a command line that may be images.

    Paths in the usual directories of sockets, firmware and devices are left out. The result may contain paths of files that are not
    images. Such paths do no harm, because the agent only checks the storage under each path.
    """
    paths = (
        path for argument in argv for path in _PATH.findall(argument) if not path.startswith(_PREFIXES_WITHOUT_IMAGES)
    )
    return list(dict.fromkeys(paths))[:MAX_PATHS]
