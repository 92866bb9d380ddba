"""The page's files, read once: a request can name only what is in this table."""

from __future__ import annotations

import importlib.resources

TYPES = {
    ".html": "text/html; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".svg": "image/svg+xml",
    ".png": "image/png",
    ".ico": "image/x-icon",
    ".woff2": "font/woff2",
}
INDEX, DOCS = "index.html", "docs.html"


def page_files() -> dict[str, tuple[bytes, str]]:
    """Content and type of every file of the page, by name; nothing if the package has no page."""
    folder = importlib.resources.files("resgen.serving").joinpath("page")
    if not folder.is_dir():
        return {}
    files = {}
    for entry in folder.iterdir():
        _, dot, ending = entry.name.rpartition(".")
        if entry.is_file() and dot + ending in TYPES:
            files[entry.name] = (entry.read_bytes(), TYPES[dot + ending])
    return files
