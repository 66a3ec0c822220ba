"""The JSON API: `Control` over HTTP, below `api/`."""

from __future__ import annotations

from aiohttp import web

from bot_ratelimit.admin.encoding import to_json
from bot_ratelimit.admin.web.console import control_of


def routes() -> list[web.RouteDef]:
    """Every route below `api/`."""
    return [web.get("/api/limits", _limits), web.get("/api/config", _config)]


async def _limits(request: web.Request) -> web.Response:
    return _json(await control_of(request).limits())


async def _config(request: web.Request) -> web.Response:
    return _json(await control_of(request).config())


def _json(value: object) -> web.Response:
    return web.Response(text=to_json(value), content_type="application/json")
