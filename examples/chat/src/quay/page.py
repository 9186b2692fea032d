"""The page's files, read once, and the headers that keep a browser strict. No framework's file server is needed.

The policy allows nothing from anywhere else and nothing inline; ``connect-src 'self'`` covers the WebSocket of the same
origin.
"""

from __future__ import annotations

import hashlib
from functools import cache
from pathlib import Path
from typing import NamedTuple

from quay.problem import Problem

__all__ = ["HEADERS", "File", "page_file"]

WEB = Path(__file__).parents[2] / "web"
_PACKAGES = WEB / "node_modules"
CLIENT = _PACKAGES / "socket.io-client" / "dist" / "socket.io.esm.min.js"
_FONTS = _PACKAGES / "@fontsource-variable" / "inter" / "files"
_TYPES = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
    ".woff2": "font/woff2",
}

HEADERS = {
    "content-security-policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; font-src 'self'; "
        "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "permissions-policy": "camera=(), geolocation=(), microphone=()",
}


class File(NamedTuple):
    """One file of the page."""

    content: bytes
    headers: dict[str, str]


def page_file(path: str) -> File:
    """The file at ``path`` of the site (``""``: the page). Raises `Problem` 404."""
    file = _files().get(path)
    if file is None:
        raise Problem(404, "not_found", "There is no such page.")
    return file


@cache
def _files() -> dict[str, File]:
    """Only these are served, whatever path is asked for."""
    own = [*WEB.glob("js/**/*.js"), *WEB.glob("*.css"), *WEB.glob("*.svg")]
    files = {path.relative_to(WEB).as_posix(): path for path in own}
    files |= {f"fonts/{part}.woff2": _FONTS / f"inter-{part}-wght-normal.woff2" for part in ("latin", "latin-ext")}
    files |= {"": WEB / "index.html", "js/socket.io.js": CLIENT}
    return {name: _read(path) for name, path in files.items() if path.is_file()}


def _read(path: Path) -> File:
    content = path.read_bytes()
    etag = f'"{hashlib.sha256(content).hexdigest()[:20]}"'
    return File(content, {"content-type": _TYPES[path.suffix], "etag": etag, "cache-control": "no-cache"})
