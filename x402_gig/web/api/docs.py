"""Swagger UI over the API's document, all of it from this server: its files are in the package `swagger-ui-py`."""

from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

from starlette.requests import Request
from starlette.responses import FileResponse, HTMLResponse, Response
from starlette.routing import Route

DOCUMENT = "/openapi.json"
PAGE = "/docs"

_CACHE = {"Cache-Control": "public, max-age=300"}
# The page's own script calls the API and nothing else; the UI styles its elements and draws icons from data URLs.
_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self' 'unsafe-inline'; img-src 'self' data:; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
_SAFE = {"Content-Security-Policy": _POLICY, "X-Content-Type-Options": "nosniff", "Referrer-Policy": "no-referrer"}

_HTML = f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>x402-gig API</title>
<link rel="icon" href="{PAGE}/favicon-32x32.png">
<link rel="stylesheet" href="{PAGE}/swagger-ui.css">
</head>
<body>
<div id="api"></div>
<noscript>This page needs JavaScript. The document itself is at <a href="{DOCUMENT}">{DOCUMENT}</a>.</noscript>
<script src="{PAGE}/swagger-ui-bundle.js"></script>
<script src="{PAGE}/start.js"></script>
</body>
</html>
"""
_START = f"""SwaggerUIBundle({{
  url: "{DOCUMENT}",
  dom_id: "#api",
  deepLinking: true,
  displayRequestDuration: true,
  tryItOutEnabled: true,
  defaultModelsExpandDepth: 0,
  validatorUrl: null,
}});
"""
_ASSETS = ("swagger-ui.css", "swagger-ui-bundle.js", "favicon-32x32.png")


def docs_routes(document: Callable[[], bytes]) -> list[Route]:
    """The document, which is made when somebody asks for it, the page and what the page loads."""

    async def show_document(request: Request) -> Response:
        return Response(document(), headers=_CACHE, media_type="application/json")

    async def show_page(request: Request) -> Response:
        return HTMLResponse(_HTML, headers=_CACHE | _SAFE)

    async def show_start(request: Request) -> Response:
        return Response(_START, headers=_CACHE | _SAFE, media_type="text/javascript")

    return [
        Route(DOCUMENT, show_document, include_in_schema=False),
        Route(PAGE, show_page, include_in_schema=False),
        Route(f"{PAGE}/start.js", show_start, include_in_schema=False),
        *(_asset(name) for name in _ASSETS),
    ]


def _asset(name: str) -> Route:
    path = _folder() / name

    async def show(request: Request) -> Response:
        return FileResponse(path, headers=_CACHE | _SAFE)

    return Route(f"{PAGE}/{name}", show, include_in_schema=False)


def _folder() -> Path:
    """Found without an import, which would import web frameworks."""
    spec = find_spec("swagger_ui")
    assert spec is not None and spec.submodule_search_locations  # noqa: S101 - a dependency
    return Path(spec.submodule_search_locations[0], "static")
