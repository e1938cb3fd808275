"""The page and the description of the API for people: the files of page/, the samplers filled in."""

from html import escape
from importlib import resources
from typing import Any

from fastapi import FastAPI, Response

from ray_dit.core.samplers import SAMPLERS

PAGE_FILES = {
    "/": ("index.html", "text/html; charset=utf-8"),
    **{
        f"/{name}.js": (f"{name}.js", "text/javascript; charset=utf-8")
        for name in ("page", "common", "classes", "gallery", "history")
    },
    "/page.css": ("page.css", "text/css; charset=utf-8"),
    "/docs": ("docs.html", "text/html; charset=utf-8"),
    "/docs.css": ("docs.css", "text/css; charset=utf-8"),
    "/docs.js": ("docs.js", "text/javascript; charset=utf-8"),
}


def add_pages(app: FastAPI) -> None:
    """Adds a route for each file."""
    for path, (name, media_type) in PAGE_FILES.items():
        app.get(path, include_in_schema=False)(_page_file(name, media_type))


def _page_file(name: str, media_type: str) -> Any:
    content = (resources.files("ray_dit.serving.http") / "page" / name).read_bytes()
    content = content.replace(b"<!-- samplers -->", _sampler_options().encode())

    async def page_file() -> Response:
        return Response(content, media_type=media_type)

    return page_file


def _sampler_options() -> str:
    return "".join(
        f'<option value="{name}">{escape(sampler.title)}</option>' for name, sampler in SAMPLERS.items()
    )
