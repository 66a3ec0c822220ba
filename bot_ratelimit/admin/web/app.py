"""admin_app: the page and the JSON API for operators, for a bot's own web server."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from typing import Any, Final

from aiohttp import web

from bot_ratelimit.admin.control import Control
from bot_ratelimit.admin.web import api, stream
from bot_ratelimit.admin.web.access import Access
from bot_ratelimit.admin.web.console import CONSOLE, Console, Pages
from bot_ratelimit.admin.web.problems import reporting
from bot_ratelimit.errors import ConfigError
from bot_ratelimit.incoming.middleware import RateLimitMiddleware

MAX_STREAMS: Final = 20
"""How many browsers may follow what happens, unless told otherwise."""


def admin_app(
    middleware: RateLimitMiddleware,
    *,
    token: str | None = None,
    admins: Iterable[int] = (),
    bot_token: str | None = None,
    max_streams: int = MAX_STREAMS,
    clock: Callable[[], float] = time.time,
) -> web.Application:
    """The page and the JSON API for operators.

    ::

        app.add_subapp("/admin/", admin_app(middleware, token="..."))
    """
    if not isinstance(middleware, RateLimitMiddleware):
        raise ConfigError(
            f"middleware is a {type(middleware).__name__}: expected a RateLimitMiddleware"
        )
    pages = _pages()

    def control(by: str) -> Control:
        return Control.of(middleware, by)

    console = Console(middleware, frozenset(admins), token is not None, pages, clock, control)
    access = Access(console, token, bot_token)
    app = web.Application(middlewares=[reporting(pages), access.check])
    app[CONSOLE] = console
    app.router.add_routes([*pages.routes(), *access.routes(), *api.routes()])
    stream.add_events(app, max_streams)
    app.on_response_prepare.append(_secure)
    return app


def _pages() -> Pages:
    try:
        from bot_ratelimit.admin.web import pages
    except ModuleNotFoundError as error:
        if error.name not in {"jinja2", "markupsafe"}:
            raise
        raise ConfigError(
            f"admin_app needs {error.name}: pip install 'bot_ratelimit[admin]'"
        ) from None
    found: Any = pages
    return found  # type: ignore[no-any-return]  # a module is what the protocol describes


_HEADERS: Final = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; "
    "img-src 'self' data:; connect-src 'self'; form-action 'self'; base-uri 'none'; "
    "frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    # Not no-referrer: browsers would then send `Origin: null` with forms.
    "Referrer-Policy": "same-origin",
    "Cache-Control": "no-store",
}


async def _secure(_: web.Request, response: web.StreamResponse) -> None:
    for name, value in _HEADERS.items():
        response.headers.setdefault(name, value)
