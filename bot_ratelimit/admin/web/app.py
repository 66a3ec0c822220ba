"""admin_app: the page and the JSON API for operators, for a bot's own web server."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from typing import Any, Final

from aiogram.utils.token import TokenValidationError, validate_token
from aiohttp import web

from bot_ratelimit.admin.control import Control
from bot_ratelimit.admin.fields import check_admins
from bot_ratelimit.admin.web import api
from bot_ratelimit.admin.web.access import Access, check_token
from bot_ratelimit.admin.web.console import CONSOLE, Console, public
from bot_ratelimit.admin.web.problems import error_middleware
from bot_ratelimit.admin.web.trusted_proxies import TrustedProxies
from bot_ratelimit.config.settings import Settings
from bot_ratelimit.errors import ConfigError
from bot_ratelimit.incoming.middleware import RateLimitMiddleware

_TELEGRAM: Final = "https://web.telegram.org https://webk.telegram.org https://weba.telegram.org"
_POLICY: Final = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; "
    "connect-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors "
)
_HEADERS: Final = {
    "X-Content-Type-Options": "nosniff",
    # Not no-referrer: with that, browsers would send `Origin: null` with forms.
    "Referrer-Policy": "same-origin",
    "Cache-Control": "no-store",
    "Cross-Origin-Resource-Policy": "same-origin",
    "X-Robots-Tag": "noindex",
}


def admin_app(
    middleware: RateLimitMiddleware,
    *,
    token: str | None = None,
    admins: Iterable[int] = (),
    bot_token: str | None = None,
    trusted_proxies: Iterable[str] = (),
    settings: Settings | None = None,
    clock: Callable[[], float] = time.time,
) -> web.Application:
    """The page and the JSON API for operators, as an application of aiohttp.

    ::

        app.add_subapp("/admin/", admin_app(middleware))

    Users who have the token can log in. So can the admins, if they open the page in Telegram as a
    Mini App of the bot.

    Args:
        middleware: The bot's middleware.
        token: What operators log in with, and what scripts send as `Authorization: Bearer`;
            RATE_LIMIT_ADMIN_TOKEN by default.
        admins: Ids of the Telegram users who may open the page as a Mini App.
        bot_token: The bot's token, which verifies who opened the Mini App.
        trusted_proxies: Addresses or networks of the proxies in front of this server, whose
            `X-Forwarded-For`, `-Proto` and `-Host` are trusted; `unix` for a Unix socket.
        settings: Shown by `config`; they also contain RATE_LIMIT_ADMIN_TOKEN. If they are needed
            and not given, they are read from the environment.
        clock: Returns Unix seconds.

    Raises:
        ConfigError: An argument is invalid, nobody would have access, or the extra `admin` is not
            installed.
    """
    if not isinstance(middleware, RateLimitMiddleware):
        kind = type(middleware).__name__
        raise ConfigError(f"middleware is a {kind}: expected a RateLimitMiddleware")
    if token is None:
        secret = (settings or Settings()).rate_limit_admin_token
        token = None if secret is None else secret.get_secret_value()
    if token is not None:
        check_token(token)
    ids = check_admins(admins)
    if token is None and not ids:
        raise ConfigError(
            "admin_app: nobody would have access: set RATE_LIMIT_ADMIN_TOKEN, or pass token=, or "
            "admins= and bot_token="
        )
    if ids:
        _check_bot_token(bot_token)
    pages = _pages()
    proxies = TrustedProxies(trusted_proxies)
    access = Access(middleware.limiter, token, ids, bot_token, proxies, clock)

    def control(by: str) -> Control:
        return Control.of(middleware, by, settings=settings)

    ancestors = _TELEGRAM if ids else "'none'"
    headers = {"Content-Security-Policy": _POLICY + ancestors, **_HEADERS}
    if not ids:
        headers["X-Frame-Options"] = "DENY"

    async def secure(_: web.Request, response: web.StreamResponse) -> None:
        for name, value in headers.items():
            response.headers.setdefault(name, value)

    app = web.Application(middlewares=[error_middleware, access.middleware()])
    app[CONSOLE] = Console(middleware, ids, token is not None, pages, control)
    app.router.add_routes([*pages.routes(), *access.routes(), *api.routes()])
    # Last: if the application is not a sub-application, this path is that of the page itself.
    app.router.add_routes([web.get("", _to_folder)])
    app.on_response_prepare.append(secure)
    return app


@public
async def _to_folder(request: web.Request) -> web.StreamResponse:
    """Redirect `/admin` to `/admin/`, so that relative links work."""
    name = request.rel_url.raw_path.rpartition("/")[2]
    return web.Response(status=308, headers={"Location": f"{name}/"})


def _check_bot_token(token: object) -> None:
    """Refuse a placeholder: everyone who knows the token can sign initData."""
    if not token:
        raise ConfigError("admins: pass bot_token= too: it verifies Telegram's signature")
    try:
        validate_token(token if isinstance(token, str) else "")
    except TokenValidationError:
        raise ConfigError(
            "bot_token: expected the bot's token as a str, such as '123456:ABC...' (the value is "
            "not shown)"
        ) from None


def _pages() -> Any:
    try:
        from bot_ratelimit.admin.web import pages
    except ModuleNotFoundError as error:
        if error.name not in {"jinja2", "markupsafe"}:
            raise
        raise ConfigError(
            f"admin_app needs {error.name}: pip install 'bot_ratelimit[admin]'"
        ) from None
    return pages
