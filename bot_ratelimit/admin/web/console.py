"""Console and Session: what handlers find in their application and in their request."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Collection
from dataclasses import dataclass
from typing import Any, Final, Protocol, TypeVar

from aiohttp import web

from bot_ratelimit.admin.control import Control
from bot_ratelimit.admin.web.problems import Problem
from bot_ratelimit.incoming.middleware import RateLimitMiddleware

ROOT: Final = "root"
"""The name of the route of the page, from which relative links are counted."""


@dataclass(frozen=True, slots=True)
class Session:
    """Who was let in."""

    by: str
    """As the audit calls them: `token@web`, or `42@web` for a Telegram user."""
    csrf: str
    """What every change must bring along; empty for a bearer token, which no browser adds."""
    expires: float
    """Unix seconds; infinite for a bearer token."""


class Pages(Protocol):
    """The page as this side needs it: the module `pages`."""

    def routes(self) -> list[web.RouteDef]:
        """Every route of the page; `ROOT` is the name of the one at `/`."""
        ...

    def login_page(self, request: web.Request, problem: Problem | None) -> web.Response:
        """The form for those who are not let in, with what went wrong, if it did."""
        ...

    def error_page(self, request: web.Request, problem: Problem) -> web.Response:
        """What went wrong, for somebody who was let in."""
        ...


@dataclass(frozen=True, slots=True)
class Console:
    """What the handlers of one `admin_app` share."""

    middleware: RateLimitMiddleware
    admins: Collection[int]
    """Ids of the Telegram users who may open it as a Mini App."""
    has_token: bool
    """Whether the login form makes sense."""
    pages: Pages
    clock: Callable[[], float]
    """Unix seconds."""
    make_control: Callable[[str], Control]

    def control(self, by: str) -> Control:
        """Control in the name of somebody, see `Session.by`."""
        return self.make_control(by)

    def root(self, request: web.Request) -> str:
        """What a link begins with that leads from this request's path to the page.

        `./` at the page itself, `../` at `users/42`. Links are relative, so they hold below any
        path, and behind a proxy that strips it.
        """
        home = str(request.app.router[ROOT].url_for())
        depth = request.rel_url.raw_path.removeprefix(home).count("/")
        return "../" * depth or "./"


_Handles = TypeVar("_Handles", bound=Callable[..., Awaitable[Any]])

CONSOLE: Final = web.AppKey("bot_ratelimit_console", Console)
SESSION: Final[Any] = (
    web.RequestKey("bot_ratelimit_session", Session)
    if hasattr(web, "RequestKey")  # aiohttp 3.14
    else "bot_ratelimit_session"
)


def console_of(request: web.Request) -> Console:
    """The console of the application that handles this request."""
    return request.app[CONSOLE]


def session_of(request: web.Request) -> Session | None:
    """Who was let in; None if the handler is public and the user is not logged in."""
    found: Session | None = request.get(SESSION)
    return found


def control_of(request: web.Request) -> Control:
    """Control in the name of whoever was let in."""
    session: Session = request[SESSION]
    return console_of(request).control(session.by)


def wants_page(request: web.Request) -> bool:
    """Whether a person reads the answer: then it is HTML, but never below `api/`."""
    home = str(request.app.router[ROOT].url_for())
    if request.rel_url.raw_path.removeprefix(home).startswith("api/"):
        return False
    return "text/html" in request.headers.get("Accept", "")


def public(handler: _Handles) -> _Handles:
    """Mark a handler that strangers may reach: the login form, and what it is made of."""
    handler.public = True  # type: ignore[attr-defined]  # read by `is_public`
    return handler


def is_public(request: web.Request) -> bool:
    """Whether strangers may reach the handler of this request."""
    return getattr(request.match_info.handler, "public", False) is True
