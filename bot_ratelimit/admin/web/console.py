"""Console and Session: what handlers find in their application and in their request."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Collection
from dataclasses import dataclass
from typing import Any, Final, TypeVar

from aiohttp import web

from bot_ratelimit.admin.control import Control
from bot_ratelimit.admin.words import Words
from bot_ratelimit.incoming.middleware import RateLimitMiddleware

ROOT: Final = "root"
"""The name of the page's root route, to which relative links lead."""


@dataclass(frozen=True, slots=True)
class Session:
    """Who is logged in."""

    by: str
    """Their name in the audit: `anna@web`, `token@web`, or `42@web` for a Telegram user."""
    csrf: str
    """The CSRF token of every change; empty for a bearer token, which no browser adds."""
    expires: float
    """Unix seconds; infinite for a bearer token."""


@dataclass(frozen=True, slots=True)
class Console:
    """What the handlers of one `admin_app` share."""

    middleware: RateLimitMiddleware
    admins: Collection[int]
    """Ids of the Telegram users who may open it as a Mini App."""
    has_token: bool
    """Whether there is a token to log in with."""
    pages: Any
    """The module `pages`, which needs jinja2."""
    control: Callable[[str], Control]
    """Control in the name of an operator, see `Session.by`."""


_Handles = TypeVar("_Handles", bound=Callable[..., Awaitable[Any]])

CONSOLE: Final = web.AppKey("bot_ratelimit_console", Console)
SESSION: Final[Any] = (
    web.RequestKey("bot_ratelimit_session", Session)
    if hasattr(web, "RequestKey")  # aiohttp 3.14
    else "bot_ratelimit_session"
)


def words_of(request: web.Request) -> Words:
    """The texts in the language that the browser prefers."""
    return Words.accepted(request.headers.get("Accept-Language", ""))


def console_of(request: web.Request) -> Console:
    """The console of the application that handles this request."""
    return request.app[CONSOLE]


def session_of(request: web.Request) -> Session | None:
    """Who is logged in; None if the handler is public and the user is not logged in."""
    session: Session | None = request.get(SESSION)
    return session


def control_of(request: web.Request) -> Control:
    """Control in the name of the operator who is logged in."""
    return console_of(request).control(request[SESSION].by)


def path_of(request: web.Request) -> str:
    """The path of this request below the root of the page."""
    home = str(request.app.router[ROOT].url_for())
    return request.rel_url.raw_path.removeprefix(home)


def root_of(request: web.Request) -> str:
    """The relative path from this request to the root of the page: `./`, or `../` at `users/42`.

    Links are relative, so they work under any path, and behind a proxy that removes a part of it.
    """
    return "../" * path_of(request).count("/") or "./"


def wants_page(request: web.Request) -> bool:
    """Whether the client accepts HTML, as browsers do; never below `api/`."""
    accepted = request.headers.get("Accept", "")
    return "text/html" in accepted and not path_of(request).startswith("api/")


def public(handler: _Handles) -> _Handles:
    """Mark a handler that needs no login: the login form, and the files that it uses."""
    handler.public = True  # type: ignore[attr-defined]  # read by `is_public`
    return handler


def is_public(request: web.Request) -> bool:
    """Whether the handler of this request needs no login."""
    return getattr(request.match_info.handler, "public", False) is True
