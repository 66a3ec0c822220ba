"""Pages: what operators see in a browser. Without JavaScript they do not update."""

from __future__ import annotations

import asyncio
import mimetypes
from collections.abc import Mapping, Sequence
from dataclasses import replace
from importlib.resources import files
from typing import Any, Final
from urllib.parse import urlencode

from aiohttp import web

from bot_ratelimit.admin import fields, sending, sheets
from bot_ratelimit.admin.views import ConfigView, HealthView, SubjectView
from bot_ratelimit.admin.web import parts
from bot_ratelimit.admin.web.chart import OUTCOMES, Bar, chart_of
from bot_ratelimit.admin.web.console import (
    ROOT,
    console_of,
    control_of,
    public,
    session_of,
    words_of,
)
from bot_ratelimit.admin.web.forms import FORMS
from bot_ratelimit.admin.web.parts import Links, Loaded, Part
from bot_ratelimit.admin.web.problems import ProblemError
from bot_ratelimit.admin.web.rendering import link, page
from bot_ratelimit.admin.web.requests import from_texts
from bot_ratelimit.admin.wording import limit_of, who
from bot_ratelimit.admin.words import Words, capital, code, joined
from bot_ratelimit.errors import ConfigError
from bot_ratelimit.rules.rule import Subject

_ROWS: Final = 50
"""Bans on one page."""
_FILES: Final = files("bot_ratelimit.admin.web") / "static"
_STATIC: Final = {each.name: each for each in _FILES.iterdir()}


def routes() -> list[web.RouteDef]:
    """Every route of the page."""
    return [
        web.get("/", _home, name=ROOT),
        web.get("/user", _user),
        web.get("/bans", _bans),
        web.get("/history", _history),
        web.get("/static/{name}", _static),
        *(route for form in FORMS for route in form.routes()),
    ]


def login_page(request: web.Request, problem: ProblemError | None) -> web.Response:
    """The login form, with the problem, if there is one."""
    # A first visit without a login is not an error.
    words, text = words_of(request), ""
    if problem is not None and (problem.status != 401 or request.method != "GET"):
        text = words.known(problem.detail or problem.title)
    shown = {"problem": text, "has_token": console_of(request).has_token}
    return page(request, "login.html", shown)


def error_page(request: web.Request, problem: ProblemError) -> web.Response:
    """A page with the problem, for users who are logged in."""
    words = words_of(request)
    shown = {"title": words(problem.title), "problem": words.known(problem.detail or problem.title)}
    return page(request, "error.html", shown, problem.status)


# --- the overview ---------------------------------------------------------------------------------


@public
async def _home(request: web.Request) -> web.Response:
    if session_of(request) is None:
        return login_page(request, None)
    control, words = control_of(request), words_of(request)
    span = {"24": 24, "48": 48}.get(request.query.get("hours", ""))
    asked: dict[str, tuple[Any, ...]] = {
        "health": (control.health,),
        "config": (control.config,),
        "limits": (control.limits,),
        "use": (control.use, span),
        "bars": (control.by_minute,) if span is None else (control.by_hour, span),
        "top": (control.top, 10, span or 2),
        "sending": (control.sending, span),
        "bans": (control.bans, 0, 5),
        "history": (control.history,),
    }
    loaded = await asyncio.gather(*(Loaded.of(*each) for each in asked.values()))
    found = dict(zip(asked, loaded, strict=True))
    if found["health"].value is not None and found["health"].value.is_out:  # which says why, once
        text = words("Redis does not answer")
        found = {name: each if not each.problem else Loaded(problem=text)
                 for name, each in found.items()}  # fmt: skip
    bars, config, history = found["bars"], found["config"], found["history"]
    chart = bars if bars.problem else Loaded(chart_of(bars.value))
    shown = {
        "here": "Overview",
        "notice": _notice(words, found["health"], config),
        "share": "" if bars.problem else _share(words, chart.value.bars, span),
        "span": span,
        "chart": chart,
        "parts": [
            parts.limits(words, config, found["limits"], found["use"].value or ()),
            parts.bans(words, found["bans"], [("bans", words("All bans"))]),
            Part.of(words, "top", "Refused most", found["top"], parts.top(span),
                    lambda each: [(f"user?user={each.user}", words("Show"))]),
            Part.of(words, "sending", "What the bot sends", found["sending"], sending.sheet),
            Part.of(words, "instances", "Instances", config,
                    lambda words, view: replace(sheets.config(words, view).more[0], foot=())),
            parts.history(words, replace(history, value=(history.value or ())[:5]),
                          [("history", words("All changes and actions"))]),
        ],
        "paging": (),
    }  # fmt: skip
    return page(request, "page.html", shown)


def _notice(words: Words, health: Loaded, config: Loaded) -> dict[str, Any]:
    """What is wrong, in words and in a colour; nothing is called well that is only connected."""
    if health.problem:
        lines = [words("Not available: {problem}", problem=health.problem)]
        return {"kind": "bad", "lines": lines, "links": ()}
    view: HealthView = health.value
    kind = {"healthy": "ok", "degraded": "warn", "unhealthy": "bad"}[view.status]
    links = [("resume", words("Switch on"))] if view.off_until else []
    lines = sheets.health_lines(words, view)
    seen: ConfigView | None = config.value
    if seen is not None and seen.problem:
        lines.append(words("Until then the last good version stays in force."))
        links.append(("rollback", words("Roll back")))
    elif seen is not None and view.status == "healthy":
        trials = [name for name, each in seen.live.rules.items() if each.get("shadow")]
        weak = [joined([code(each.name, 100), limit_of(words, each)], " ") for each in seen.rules
                if each.off or each.name in trials]  # fmt: skip
        if weak:
            kind = "warn"
            lines.append(words("Limits that refuse nobody: {rules}.", rules=joined(weak, "; ")))
        elif view.limiter.source == "redis":
            lines.append(words("All limits are on."))
    return {"kind": kind, "lines": lines, "links": links}


def _share(words: Words, bars: Sequence[Bar], span: int | None) -> str:
    """The share of refusals now, and what it was before: what is normal differs between bots."""
    shares, latest = [], 5 if span is None else 1
    for some in (bars[-latest:], bars[:-latest]):
        allowed, *refused = (sum(each.counts[name] for each in some) for name in OUTCOMES)
        total = allowed + sum(refused)
        shares.append(f"{100 * sum(refused) / total:.0f} %" if total else "–")
    if shares[0] == "–":
        return ""
    text = "Refused in this hour: {now} of the decisions; in the hours before: {before}."
    if span is None:
        text = "Refused in the last 5 minutes: {now} of the decisions; before: {before}."
    return words(text, now=shares[0], before=shares[1])


# --- the other pages ------------------------------------------------------------------------------


async def _user(request: web.Request) -> web.Response:
    control, words = control_of(request), words_of(request)
    shown: dict[str, Any] = {"title": words("Find a user"), "parts": (), "actions": (), "error": ""}
    try:
        subject = _subject(request.query)
        if subject is not None:
            view = await control.show(subject)
            now = Part("now", words("Now"), sheets.subject(words, view))
            shown |= {"parts": [now], "actions": _actions(words, subject, view),
                      "title": capital(who(words, subject))}  # fmt: skip
    except ConfigError as problem:
        shown["error"] = words.known(problem)
    shown["typed"] = request.query
    return page(request, "user.html", shown, 422 if shown["error"] else 200)


def _subject(query: Mapping[str, str]) -> Subject | None:
    """The subject of a query: `user` is the id, or `chat` without a user."""
    given: dict[str, Any] = from_texts(fields.Counted, query)  # type: ignore[arg-type]  # a MultiMapping
    given["id"] = given.pop("user", None) or given.pop("chat", None)
    given = {name: each for name, each in given.items()
             if name in fields.Counted.model_fields and each is not None}  # fmt: skip
    return fields.checked(fields.Counted, given).subject if "id" in given else None


def _actions(words: Words, subject: Subject, view: SubjectView) -> list[tuple[str, str]]:
    """What can be done with a user or chat."""
    actions = [(f"forgive?{link(subject)}", words("Forgive"))]
    if view.banned is not None:
        actions.append((f"unban?{link(view.banned.subject)}", words("Lift the ban")))
    everywhere = link(subject._replace(chat=None, topic=None) if subject.user else subject)
    change = words("Change the ban") if view.banned is not None else words("Ban")
    actions.append((f"ban?{everywhere}", change))
    text = words("No longer exempt") if view.exempt else words("Exempt from all limits")
    id_ = subject.chat if subject.user is None else subject.user
    wanted = "no" if view.exempt else "yes"
    return [*actions, (f"exempt?{urlencode({'id': id_, 'exempt': wanted})}", text)]


async def _bans(request: web.Request) -> web.Response:
    words, given = words_of(request), request.query.get("offset", "0")
    offset = int(given) if given.isascii() and given.isdecimal() and len(given) < 10 else 0
    bans = await Loaded.of(control_of(request).bans, offset, _ROWS + 1)
    paging = [(f"bans?offset={max(offset - _ROWS, 0)}", words("Earlier ends"))] if offset else []
    if bans.value and len(bans.value) > _ROWS:
        paging.append((f"bans?offset={offset + _ROWS}", words("Later ends")))
        bans.value.pop()
    return _listed(request, "Bans", [parts.bans(words, bans)], paging)


async def _history(request: web.Request) -> web.Response:
    control, words = control_of(request), words_of(request)
    history, audit = await asyncio.gather(*map(Loaded.of, (control.history, control.audit)))
    drop = [("rollback?version=0", words("Drop all live changes"))]
    actions = Part.of(words, "audit", "What operators did", audit, sheets.audit)
    return _listed(request, "History", [parts.history(words, history, drop), actions])


def _listed(
    request: web.Request, here: str, parts: Sequence[Part], paging: Links = ()
) -> web.Response:
    shown = {"here": here, "parts": parts, "paging": paging, "notice": None, "chart": None}
    return page(request, "page.html", shown)


@public
async def _static(request: web.Request) -> web.Response:
    file = _STATIC.get(request.match_info["name"])
    if file is None:
        raise web.HTTPNotFound
    kind = mimetypes.guess_type(file.name)[0] or "application/octet-stream"
    headers = {"Cache-Control": "public, max-age=3600"}
    return web.Response(body=file.read_bytes(), content_type=kind, charset="utf-8", headers=headers)
