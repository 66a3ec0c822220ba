"""Access: who has access, and how requests are authenticated."""

from __future__ import annotations

import hmac
import re
from hashlib import sha256
from typing import Final

from aiohttp import web
from aiohttp.typedefs import Handler, Middleware
from multidict import MultiMapping

from bot_ratelimit.admin.encoding import to_json
from bot_ratelimit.admin.web.console import (
    IS_LOST,
    SESSION,
    Session,
    is_public,
    public,
    session_of,
    wants_page,
)
from bot_ratelimit.admin.web.login_limits import LoginLimiter, UsedInitData
from bot_ratelimit.admin.web.mini_app import InitDataError, MiniApp
from bot_ratelimit.admin.web.problems import ProblemError
from bot_ratelimit.admin.web.requests import read_form
from bot_ratelimit.admin.web.sessions import (
    BY_TOKEN,
    DEVICE_SECONDS,
    MINI_APP_SESSION_SECONDS,
    SESSION_SECONDS,
    SessionLostError,
    Sessions,
    cookie_header,
)
from bot_ratelimit.admin.web.trusted_proxies import SAFE, TrustedProxies
from bot_ratelimit.errors import ConfigError, StorageError

CSRF_FIELD: Final = "csrf"
CSRF_HEADER: Final = "X-CSRF-Token"

_TOKEN: Final = re.compile(r"[!-~]{16,512}")
_VARIED: Final = 6
_NAME: Final = re.compile(r"\w[\w .-]{0,39}")


def check_token(token: object) -> str:
    """The token itself, if it is strong enough.

    Raises:
        ConfigError: The token is too short or too simple; the message does not show it.
    """
    if not isinstance(token, str) or not _TOKEN.fullmatch(token) or len(set(token)) < _VARIED:
        raise ConfigError(
            "RATE_LIMIT_ADMIN_TOKEN (or token=): expected 16 to 512 letters, digits and signs "
            "without spaces, and at least 6 different ones; make one with "
            "`python -c 'import secrets; print(secrets.token_urlsafe(32))'`"
        )
    return token


class Access:
    """Authenticates requests, opens and ends sessions, and checks that changes come from our page.

    Args:
        token: What scripts send with every request, and people in the login form; None if nobody
            can log in with a token.
        mini_app: Checks initData; None if nobody can log in from Telegram.
        sessions: Opens sessions and recognizes them.
        login_limiter: Counts failed logins.
        used: Remembers initData that was used.
        proxies: Knows the addresses from which requests come.
    """

    def __init__(
        self,
        token: str | None,
        mini_app: MiniApp | None,
        sessions: Sessions,
        login_limiter: LoginLimiter,
        used: UsedInitData,
        proxies: TrustedProxies,
    ) -> None:
        self._token = None if token is None else sha256(token.encode()).digest()
        self._mini_app, self._sessions = mini_app, sessions
        self._login_limiter, self._proxies = login_limiter, proxies
        self._used = used

    def routes(self) -> list[web.RouteDef]:
        """Login and logout."""
        return [web.post("/login", self._login), web.post("/logout", self._logout)]

    def middleware(self) -> Middleware:
        """Runs before every handler.

        Requests without access get 401 for every path, even for paths that do not exist, so that
        nobody can find out which paths exist.
        """

        @web.middleware
        async def check(request: web.Request, handler: Handler) -> web.StreamResponse:
            is_open, session = is_public(request), None
            try:
                session = await self._session(request)
            except SessionLostError:
                request[IS_LOST] = True
            except StorageError:  # the login form and its files are for everybody
                if not is_open:
                    raise
            if session is not None:
                request[SESSION] = session
            elif not is_open:
                raise _unauthorized("send the token, or log in")
            if request.method not in SAFE:
                await self._check_change(request, session, is_open)
            return await handler(request)

        return check

    async def _session(self, request: web.Request) -> Session | None:
        shown = request.headers.getall("Authorization", [])
        bearers = [each for each in shown if each[:7].lower() == "bearer "]
        if bearers:  # any other scheme is meant for a proxy in front of this server
            wrong = None if self._is_right(bearers) else _unauthorized("this token is wrong")
            await self._login_limiter.check(wrong, self._proxies.client_address(request))
            return Session(BY_TOKEN, "", float("inf"))
        return await self._sessions.find(request)

    def _is_right(self, bearers: list[str]) -> bool:
        return len(bearers) == 1 and self._is_token(bearers[0][7:].strip())

    def _is_token(self, given: str) -> bool:
        # All hashes have the same length, so the time reveals nothing about the token's length.
        hashed = sha256(given.encode("utf-8", "surrogateescape")).digest()
        return self._token is not None and hmac.compare_digest(hashed, self._token)

    async def _check_change(
        self, request: web.Request, session: Session | None, is_open: bool
    ) -> None:
        if session is not None and not session.csrf:
            return  # browsers do not send a bearer token on their own
        if not self._proxies.is_same_origin(request):
            raise ProblemError(403, "the request comes from another site")
        if session is None or is_open:
            return
        given = request.headers.getall(CSRF_HEADER, [])
        if not given:
            form: MultiMapping[str] = await read_form(request, for_csrf=True)
            given = form.getall(CSRF_FIELD, [])
        right = session.csrf.encode()
        if len(given) != 1 or not hmac.compare_digest(given[0].encode("utf-8", "replace"), right):
            raise ProblemError(403, "the CSRF token is missing or wrong: load the page again")

    @public
    async def _login(self, request: web.Request) -> web.StreamResponse:
        form = await read_form(request)
        tokens, init_data = form.getall("token", []), form.getall("init_data", [])
        if len(tokens) + len(init_data) != 1:
            raise ProblemError(400, "expected one field: either token or init_data")
        user = None
        if tokens:
            await self._check_token(request, tokens[0])
        else:
            user = await self._check_init_data(request, init_data[0])
        by = f"{user}@web" if user else _named(form.getall("name", []))
        return await self._let_in(request, user, by)

    async def _check_token(self, request: web.Request, token: str) -> None:
        wrong = None if self._is_token(token) else _unauthorized("this token is wrong")
        device = self._sessions.device(request)
        await self._login_limiter.check(wrong, self._proxies.client_address(request), device)

    async def _check_init_data(self, request: web.Request, init_data: str) -> int:
        """The id of the admin who opened the page in Telegram.

        Valid initData passes even while the address is slowed down: a signature cannot be guessed.

        Raises:
            ProblemError: It is not valid, or was used before.
            StorageError: The storage cannot be reached, so nobody knows whether it was used.
        """
        try:
            if self._mini_app is None:
                raise InitDataError(401, "this page accepts no logins from Telegram: use the token")
            user, opening = self._mini_app.opened(init_data)
            if not await self._used.use(f"initData {opening}"):
                raise InitDataError(
                    401, "this initData was used before: open the page again in Telegram"
                )
        except InitDataError as wrong:
            source = self._proxies.client_address(request)
            await self._login_limiter.check(wrong, source, telegram=True)
            raise
        return user

    async def _let_in(self, request: web.Request, user: int | None, by: str) -> web.StreamResponse:
        value, session = await self._sessions.open(user, by)
        https = self._proxies.is_https(request)
        lasts = SESSION_SECONDS if user is None else MINI_APP_SESSION_SECONDS
        response: web.Response
        if wants_page(request):
            response = web.Response(status=303, headers={"Location": "./"})
        else:
            content = {"by": session.by, "csrf": session.csrf, "expires": session.expires}
            response = web.Response(text=to_json(content), content_type="application/json")
        cookies = [(self._sessions.cookie, value, lasts)]
        if user is None:
            cookies.append(
                (self._sessions.device_cookie, self._sessions.new_device_cookie(), DEVICE_SECONDS)
            )
        for name, text, seconds in cookies:
            header = cookie_header(name, text, seconds, https=https, cross_site=user is not None)
            response.headers.add("Set-Cookie", header)
        return response

    async def _logout(self, request: web.Request) -> web.StreamResponse:
        session = session_of(request)
        await self._sessions.end(request)
        response = web.Response(status=303, headers={"Location": "./"})
        cross_site = session is not None and session.by[:-4].isdecimal()
        https = self._proxies.is_https(request)
        header = cookie_header(self._sessions.cookie, "", 0, https=https, cross_site=cross_site)
        response.headers.add("Set-Cookie", header)
        return response


def _named(names: list[str]) -> str:
    """Who acts, for the audit; without a name, somebody with the token."""
    name = " ".join(names).strip()
    if not name:
        return BY_TOKEN
    if not _NAME.fullmatch(name) or name.isdecimal():
        raise ProblemError(
            422, "name: expected up to 40 letters, digits, spaces, dots and hyphens, for the audit"
        )
    return f"{name}@web"


def _unauthorized(detail: str) -> ProblemError:
    headers = {"WWW-Authenticate": 'Bearer realm="bot_ratelimit"'}
    return ProblemError(401, detail, headers=headers)
