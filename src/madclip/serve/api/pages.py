"""The pages: static files of this package, built from web/; or one line that says how to build them."""

from __future__ import annotations

from importlib.resources import files
from mimetypes import guess_type

from fastapi import APIRouter, Response
from starlette.exceptions import HTTPException

router = APIRouter(include_in_schema=False)
MISSING = "The pages are not built: run `npm ci && npm run build` in web/; for the API see /openapi.json.\n"
TYPES = {".js": "text/javascript", ".wasm": "application/wasm", ".css": "text/css", ".svg": "image/svg+xml"}
FOREVER = "public, max-age=31536000, immutable"
"""Files below assets/ have their content's digest in their name."""


def _content(*parts: str) -> bytes | None:
    """A file of the pages; None where there is none of this name."""
    place = files("madclip.serve") / "pages"
    for part in parts:
        found = next((one for one in place.iterdir() if one.name == part), None) if place.is_dir() else None
        if found is None:
            return None
        place = found
    return place.read_bytes() if place.is_file() else None


@router.get("/")
def start() -> Response:
    """The one page."""
    content = _content("index.html")
    if content is None:
        return Response(MISSING, 503, media_type="text/plain")
    return Response(content, media_type="text/html", headers={"cache-control": "no-cache"})


@router.get("/{path:path}")
def file(path: str) -> Response:
    """A file of the page; names are looked up and build no path."""
    content = None if path.startswith("v1/") else _content(*path.split("/"))
    if content is None:
        raise HTTPException(404, "there is no such page")
    ending = "." + path.rpartition(".")[2]
    kind = TYPES.get(ending) or guess_type(path)[0] or "application/octet-stream"
    kept = FOREVER if path.startswith("assets/") else "no-cache"
    return Response(content, media_type=kind, headers={"cache-control": kept})
