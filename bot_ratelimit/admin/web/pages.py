"""Pages: what operators see in a browser. Without JavaScript they do not update."""

from __future__ import annotations

import asyncio
import mimetypes
from collections.abc import Awaitable
from dataclasses import dataclass
from importlib.resources import files
from typing import Any, Final

from aiohttp import web

from bot_ratelimit.admin.web import limit_actions, user_actions
from bot_ratelimit.admin.web.chart import Chart, chart_of
from bot_ratelimit.admin.web.console import ROOT, console_of, control_of, public, session_of
from bot_ratelimit.admin.web.forms import Form
from bot_ratelimit.admin.web.problems import Problem
from bot_ratelimit.admin.web.rendering import page
from bot_ratelimit.errors import ConfigError, RateLimitError

_ROWS: Final = 50
"""Bans on one page."""
_DONE: Final = frozenset({"changed", "forgiven", "banned", "unbanned"})
_FILES: Final = files("bot_ratelimit.admin.web") / "static"
_STATIC: Final = {each.name: each for each in _FILES.iterdir()}


def routes() -> list[web.RouteDef]:
    """Every route of the page."""
    actions = [*user_actions.actions(), *limit_actions.actions()]
    return [
        web.get("/", _home, name=ROOT),
        web.get("/user", _user),
        web.get("/bans", _bans),
        web.get("/history", _history),
        web.get("/static/{name}", _static),
        *(route for action in actions for route in action.routes()),
    ]


def login_page(request: web.Request, problem: Problem | None) -> web.Response:
    """The login form, with the problem, if there is one."""
    console = console_of(request)
    # A first visit without a login is not an error.
    is_shown = problem is not None and (problem.status != 401 or request.method != "GET")
    shown = {
        "problem": problem.detail or problem.title if problem is not None and is_shown else "",
        "has_token": console.has_token,
    }
    return page(request, "login.html", shown)


def error_page(request: web.Request, problem: Problem) -> web.Response:
    """A page with the problem, for users who are logged in."""
    shown = {"title": problem.title, "problem": problem.detail or problem.title}
    return page(request, "error.html", shown, problem.status)


@dataclass(frozen=True, slots=True)
class Section:
    """A part of a page; if it cannot be loaded, the page still shows the other parts."""

    value: Any = None
    problem: str = ""

    @classmethod
    async def of(cls, awaitable: Awaitable[Any]) -> Section:
        """The result, or why it is not available."""
        try:
            return cls(await awaitable)
        except RateLimitError as error:
            return cls(problem=str(error))


@dataclass(frozen=True, slots=True)
class Done:
    """What the operator has just done, from the query."""

    what: str
    count: int

    @classmethod
    def of(cls, form: Form) -> Done:
        """From a query; values that the pages do not write there are ignored."""
        what = form.text("done")
        try:
            return cls(what if what in _DONE else "", form.number("count") or 0)
        except ConfigError:
            return cls("", 0)


@public
async def _home(request: web.Request) -> web.Response:
    if session_of(request) is None:
        return login_page(request, None)
    control, form = control_of(request), Form(request.query)
    span = 48 if form.text("hours") == "48" else 24
    asked = {
        "health": control.health(),
        "live": control.changes.current(),
        "instances": control.instances(),
        "limits": control.limits(),
        "use": control.use(span),
        "chart": _chart(control.by_hour(span)),
        "top": control.top(10, span),
        "bans": control.bans(0, 6),
        "history": control.changes.history(),
    }
    sections = dict(zip(asked, await asyncio.gather(*map(Section.of, asked.values())), strict=True))
    use = {each.rule.name: each for each in sections.pop("use").value or ()}
    now = console_of(request).clock()
    shown = {**sections, "span": span, "now": now, "done": Done.of(form), "use": use}
    return page(request, "overview.html", shown)


async def _chart(hours: Awaitable[Any]) -> Chart:
    return chart_of(await hours)


async def _user(request: web.Request) -> web.Response:
    control, form = control_of(request), Form(request.query)
    subject = view = None
    error = ""
    if "user" in form or "chat" in form:
        try:
            subject = form.subject()
            view = await control.show(subject)
        except ConfigError as problem:
            error = str(problem)
    live, instances = await asyncio.gather(
        *map(Section.of, (control.changes.current(), control.instances()))
    )
    shown: dict[str, Any] = {"subject": subject, "view": view, "error": error}
    shown |= {"typed": form, "done": Done.of(form), "live": live, "instances": instances}
    return page(request, "user.html", shown, 422 if error else 200)


async def _bans(request: web.Request) -> web.Response:
    offset = max(Form(request.query).number("offset") or 0, 0)
    bans = await Section.of(control_of(request).bans(offset, _ROWS + 1))
    return page(request, "bans.html", {"bans": bans, "offset": offset, "size": _ROWS})


async def _history(request: web.Request) -> web.Response:
    control = control_of(request)
    live, history, audit = await asyncio.gather(
        *map(Section.of, (control.changes.current(), control.changes.history(), control.audit()))
    )
    shown = {"live": live, "history": history, "audit": audit}
    return page(request, "history.html", shown)


@public
async def _static(request: web.Request) -> web.Response:
    file = _STATIC.get(request.match_info["name"])
    if file is None:
        raise web.HTTPNotFound
    kind = mimetypes.guess_type(file.name)[0] or "application/octet-stream"
    headers = {"Cache-Control": "public, max-age=3600"}
    return web.Response(body=file.read_bytes(), content_type=kind, charset="utf-8", headers=headers)
