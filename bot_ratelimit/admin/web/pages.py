"""Pages: what operators see in a browser. Without JavaScript they do not update."""

from __future__ import annotations

import asyncio
import mimetypes
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, replace
from importlib.resources import files
from typing import Any, Final
from urllib.parse import urlencode

from aiohttp import web
from multidict import MultiMapping

from bot_ratelimit.admin import fields, sending, sheets
from bot_ratelimit.admin.sheets import Sheet
from bot_ratelimit.admin.views import ConfigView, HealthView, SubjectView
from bot_ratelimit.admin.web.chart import chart_of
from bot_ratelimit.admin.web.console import (
    ROOT,
    console_of,
    control_of,
    public,
    session_of,
    words_of,
)
from bot_ratelimit.admin.web.forms import FORMS
from bot_ratelimit.admin.web.problems import ProblemError
from bot_ratelimit.admin.web.rendering import link, page
from bot_ratelimit.admin.web.requests import from_form
from bot_ratelimit.admin.wording import limit_of, who
from bot_ratelimit.admin.words import Words, capital, code, joined
from bot_ratelimit.config.overrides import Overrides
from bot_ratelimit.errors import ConfigError, RateLimitError
from bot_ratelimit.rules.rule import Subject
from bot_ratelimit.storage.banlist import Ban

_ROWS: Final = 50
"""Bans on one page."""
_HANDLERS: Final = 30
"""Handlers without a limit of their own that the overview lists."""
_USE: Final = {"allowed": "ALLOWED", "refused": "REFUSED", "banned": "BANNED",
               "remaining": "LEFT NOW"}  # fmt: skip
_FILES: Final = files("bot_ratelimit.admin.web") / "static"
_STATIC: Final = {each.name: each for each in _FILES.iterdir()}

Links = Sequence[tuple[str, str]]


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
        "span": span,
        "chart": chart,
        "parts": [
            _limits_part(words, config, found["limits"], found["use"]),
            _bans_part(words, found["bans"], [("bans", words("All bans"))]),
            Part.of(words, "top", "Refused most", found["top"], _top(span),
                    lambda each: [(f"user?user={each.user}", words("Show"))]),
            Part.of(words, "sending", "What the bot sends", found["sending"], sending.sheet),
            Part.of(words, "instances", "Instances", config,
                    lambda words, view: replace(sheets.config(words, view).more[0], foot=())),
            _history_part(words, replace(history, value=(history.value or ())[:5]),
                          [("history", words("All changes and actions"))]),
        ],
        "paging": (),
    }  # fmt: skip
    return page(request, "page.html", shown)


def _notice(words: Words, health: Loaded, config: Loaded) -> dict[str, Any]:
    """What is wrong, in words and in a colour; nothing is called well that is only connected."""
    if health.problem:
        problem = words("Not available: {problem}", problem=health.problem)
        return {"kind": "bad", "lines": [problem], "links": ()}
    view: HealthView = health.value
    kind = {"healthy": "ok", "degraded": "warn", "unhealthy": "bad"}[view.status]
    links = [("resume", words("Switch on"))] if view.off_until else []
    lines: list[str] = [*sheets.health(words, view).lines]
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


def _subject(query: MultiMapping[str]) -> Subject | None:
    given = from_form(fields.Counted, query)
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
    return _listed(request, "Bans", [_bans_part(words, bans)], paging)


async def _history(request: web.Request) -> web.Response:
    control, words = control_of(request), words_of(request)
    history, audit = await asyncio.gather(*map(Loaded.of, (control.history, control.audit)))
    drop = [("rollback?version=0", words("Drop all live changes"))]
    actions = Part.of(words, "audit", "What operators did", audit, sheets.audit)
    return _listed(request, "History", [_history_part(words, history, drop), actions])


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


# --- the cards of a page --------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Loaded:
    """A part of a page; if it cannot be loaded, the page still shows the other parts."""

    value: Any = None
    problem: str = ""

    @classmethod
    async def of(cls, ask: Callable[..., Awaitable[Any]], *arguments: Any) -> Loaded:
        """The result, or why it is not available."""
        try:
            return cls(await ask(*arguments))
        except RateLimitError as error:
            return cls(problem=str(error))


@dataclass(frozen=True, slots=True)
class Part:
    """A card with a table; each row has its links."""

    name: str
    title: str
    sheet: Sheet = Sheet()  # noqa: RUF009 - frozen
    links: Sequence[Links] = ()
    header: Links = ()
    problem: str = ""

    @classmethod
    def of(
        cls,
        words: Words,
        name: str,
        title: str,
        loaded: Loaded,
        show: Callable[[Words, Any], Sheet],
        links: Callable[[Any], Links] | None = None,
        header: Links = (),
    ) -> Part:
        """What was loaded, with links for each row; or why it is not available."""
        if loaded.problem:
            return cls(name, words(title), header=header, problem=loaded.problem)
        rows = [links(each) for each in loaded.value] if links is not None else ()
        return cls(name, words(title), show(words, loaded.value), rows, header)


def _bans_part(words: Words, bans: Loaded, header: Links = ()) -> Part:
    """Who is banned."""

    def links(ban: Ban) -> Links:
        who = link(ban.subject)
        return [(f"user?{who}", words("Show")), (f"unban?{who}", words("Lift"))]

    header = [("ban", words("Ban somebody")), *header]
    return Part.of(words, "bans", "Bans", bans, sheets.bans, links, header)


def _history_part(words: Words, history: Loaded, header: Links) -> Part:
    """The versions to roll back to."""
    part = Part.of(words, "history", "Versions of the live limits", history, sheets.history,
                   lambda each: [(f"rollback?version={each.live.version}", words("Roll back"))],
                   header)  # fmt: skip
    return replace(part, links=[(), *part.links[1:]])  # the newest one is in force


def _limits_part(words: Words, config: Loaded, limits: Loaded, use: Loaded) -> Part:
    """Every rule, its use, and the handlers that can get a limit."""
    title = words("Limits")
    if config.value is None and limits.value is None:
        return Part("limits", title, problem=limits.problem)
    # During an outage: what this process knows.
    view = config.value or ConfigView("", "", (), Overrides(), (), limits.value)
    sheet, used = sheets.limits(words, view), {each.name: each for each in use.value or ()}
    handlers = sorted({name for each in view.instances for name in each.handlers})[:_HANDLERS]
    cells = {name: (name, words("no rule in force"), "", "", "") for name in used}
    cells |= {name: (code(name, 100), words("as every handler"), "", "", "") for name in handlers}
    cells |= {rule.name: tuple(row) for rule, row in zip(view.rules, sheet.rows, strict=True)}
    paths = dict.fromkeys(handlers, "limit")
    paths |= {each.name: "penalty" if each.ban_ms else "limit" for each in view.rules}
    rows, links = [], []
    for name in sorted(cells, key=[*(each.name for each in view.rules), *used, *handlers].index):
        numbers = (getattr(used.get(name), each, "") for each in _USE)
        rows.append((*cells[name], *numbers))
        path = f"{paths.get(name)}?{urlencode({'name': name})}"
        links.append([(path, words("Change"))] if name in paths else [])
    header = [("pause", words("Pause all limits"))]
    if "penalty" not in paths.values():
        header.insert(0, ("penalty", words("Add a ban for users who keep sending")))
    head = [*sheet.head, *map(words, _USE.values())]
    foot = list(sheet.foot) if config.value is not None else [words("As this instance knows them.")]
    if used:
        text = "Each decision is counted once: for the limit that refused, or had the least left."
        foot.append(words(text))
    found = replace(sheet, lines=(), head=head, rows=rows, foot=foot)
    return Part("limits", title, found, links, header)


def _top(span: int | None) -> Callable[[Words, Any], Sheet]:
    """How the users who were refused most often are shown."""

    def show(words: Words, found: Any) -> Sheet:
        foot = [words("In this hour and the one before.")] if span is None else []
        return replace(sheets.top(words, found), foot=foot)

    return show
