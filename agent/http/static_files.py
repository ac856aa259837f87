"""Serves the page's files. The URL of each file contains a digest of all files, so browsers cache a file until the agent is upgraded."""

import hashlib
from importlib.resources import files
from typing import Final

from aiohttp import web

CONTENT_TYPES: Final = {".html": "text/html", ".css": "text/css", ".js": "text/javascript", ".svg": "image/svg+xml"}
"""Content types of the page's files, by suffix. Files with other suffixes are not served."""

IMMUTABLE_HEADERS: Final = {"Cache-Control": "private, max-age=31536000, immutable"}
"""Response headers that let a browser cache a file for a year."""
INDEX: Final = "index.html"


class StaticFiles:
    """Request handlers of the page's HTML file, and of its scripts, style sheets and icon."""

    def __init__(self) -> None:
        self._files = _read_files()
        self._digest = content_digest(self._files)
        html, _ = self._files.pop(INDEX)
        self._html = html.replace(b'"page/', f'"page/{self._digest}/'.encode())

    async def index(self, _: web.Request) -> web.Response:
        """Return the HTML file. The links in the file contain the digest of the page's files."""
        return web.Response(body=self._html, content_type=CONTENT_TYPES[".html"], charset="utf-8")

    async def file(self, request: web.Request) -> web.Response:
        """Return a file. Forbid caching if the URL has the digest of another agent version."""
        file = self._files.get(request.match_info["name"])
        if file is None:
            raise web.HTTPNotFound
        body, content_type = file
        headers = IMMUTABLE_HEADERS if request.match_info["digest"] == self._digest else None
        return web.Response(body=body, content_type=content_type, charset="utf-8", headers=headers)


def _read_files() -> dict[str, tuple[bytes, str]]:
    """Return the files by name, each with its content type."""
    result: dict[str, tuple[bytes, str]] = {}
    for file in files("agent.http").joinpath("page").iterdir():
        content_type = CONTENT_TYPES.get(file.name[file.name.rfind(".") :])
        if content_type is not None:
            result[file.name] = file.read_bytes(), content_type
    return result


def content_digest(contents: dict[str, tuple[bytes, str]]) -> str:
    """Return a digest of the names and the content of files."""
    digest = hashlib.sha256()
    for name in sorted(contents):
        body, _ = contents[name]
        digest.update(f"{name} {len(body)} ".encode() + body)
    return digest.hexdigest()[:16]
