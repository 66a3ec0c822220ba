"""The page for operators."""

from __future__ import annotations

from html import escape

from aiohttp import web

from bot_ratelimit.admin.web.console import ROOT, anybody, session_of
from bot_ratelimit.admin.web.problems import Problem


def routes() -> list[web.RouteDef]:
    """Every route of the page."""
    return [web.get("/", _home, name=ROOT)]


def login_page(request: web.Request, problem: Problem | None) -> web.Response:
    """The form for those who are not let in, with what went wrong, if it did."""
    told = "" if problem is None else f"<p>{escape(problem.detail)}</p>"
    form = '<form method="post" action="login"><input type="password" name="token"></form>'
    return web.Response(text=f"<!doctype html>{told}{form}", content_type="text/html")


def error_page(request: web.Request, problem: Problem) -> web.Response:
    """What went wrong, for somebody who was let in."""
    return web.Response(
        text=f"<!doctype html><p>{escape(problem.detail)}</p>", content_type="text/html"
    )


@anybody
async def _home(request: web.Request) -> web.Response:
    session = session_of(request)
    if session is None:
        return login_page(request, None)
    return web.Response(text=f"<!doctype html>{escape(session.by)}", content_type="text/html")
