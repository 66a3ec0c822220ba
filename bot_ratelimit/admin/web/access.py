"""Access: who has access, and how requests are authenticated."""

from __future__ import annotations

import hmac
import re
from collections.abc import Callable, Collection
from hashlib import sha256
from typing import Final

from aiohttp import web
from aiohttp.typedefs import Handler, Middleware
from multidict import MultiMapping

from bot_ratelimit.admin.encoding import to_json
from bot_ratelimit.admin.web.console import SESSION, Session, is_public, public, wants_page
from bot_ratelimit.admin.web.logins import InitDataError, LoginLimiter, opened
from bot_ratelimit.admin.web.problems import ProblemError
from bot_ratelimit.admin.web.requests import read_form
from bot_ratelimit.admin.web.sessions import Sessions
from bot_ratelimit.admin.web.trusted_proxies import SAFE, TrustedProxies
from bot_ratelimit.errors import ConfigError, StorageError
from bot_ratelimit.limiter.limiter import Limiter

CSRF_FIELD: Final = "csrf"
CSRF_HEADER: Final = "X-CSRF-Token"
BY_TOKEN: Final = "token@web"  # noqa: S105 - what the audit says, no password

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

    For the arguments see `admin_app`; without a token, nobody can log in with one.
    """

    def __init__(
        self,
        limiter: Limiter,
        token: str | None,
        admins: Collection[int],
        bot_token: str | None,
        proxies: TrustedProxies,
        clock: Callable[[], float],
    ) -> None:
        self._token = None if token is None else sha256(token.encode()).digest()
        self._admins, self._bot_token = admins, bot_token or ""
        self._proxies, self._clock = proxies, clock
        secret = [token or "", self._bot_token if admins else "", *map(str, sorted(admins))]
        self._sessions = Sessions(limiter, "\0".join(secret).encode(), clock)
        self._logins = LoginLimiter(limiter)

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
            except StorageError:  # the login form and its files are for everybody
                if not is_open:
                    raise
            request[SESSION] = session
            if session is None and not is_open:
                raise _unauthorized("send the token, or log in")
            if request.method not in SAFE:
                await self._check_change(request, session, is_open)
            return await handler(request)

        return check

    async def _session(self, request: web.Request) -> Session | None:
        shown = request.headers.getall("Authorization", [])
        bearers = [each for each in shown if each[:7].lower() == "bearer "]
        if not bearers:  # any other scheme is meant for a proxy in front of this server
            return await self._sessions.find(request)
        is_right = len(bearers) == 1 and self._is_token(bearers[0][7:].strip())
        wrong = None if is_right else _unauthorized("this token is wrong")
        await self._logins.check(wrong, self._proxies.client_address(request), place="bearer")
        return Session(BY_TOKEN, "", float("inf"))

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
        user, source = None, self._proxies.client_address(request)
        if tokens:
            wrong = None if self._is_token(tokens[0]) else _unauthorized("this token is wrong")
            await self._logins.check(wrong, source, self._sessions.device(request))
        else:
            user = await self._user_of(init_data[0], source)
        by = _named(form.getall("name", [])) if user is None else f"{user}@web"
        https, is_mini_app = self._proxies.is_https(request), user is not None
        session, cookies = await self._sessions.open(by, https, mini_app=is_mini_app)
        if wants_page(request):
            return _redirect(cookies)
        content = {"by": session.by, "csrf": session.csrf, "expires": session.expires}
        response = web.Response(text=to_json(content), content_type="application/json")
        response.headers.extend([("Set-Cookie", each) for each in cookies])
        return response

    async def _user_of(self, init_data: str, source: str) -> int:
        """The admin who opened the page in Telegram.

        Valid initData passes even while the address is slowed down: a signature cannot be guessed.
        """
        try:
            if not self._admins:
                raise InitDataError(401, "this page accepts no logins from Telegram: use the token")
            user, opening = opened(init_data, self._bot_token, self._admins, self._clock)
            await self._logins.use(opening)
        except InitDataError as wrong:
            await self._logins.check(wrong, source, place="telegram")
            raise
        return user

    async def _logout(self, request: web.Request) -> web.StreamResponse:
        return _redirect(await self._sessions.end(request, self._proxies.is_https(request)))


def _redirect(cookies: list[str]) -> web.Response:
    headers = [("Location", "./"), *(("Set-Cookie", each) for each in cookies)]
    return web.Response(status=303, headers=headers)


def _named(names: list[str]) -> str:
    """Who acts, for the audit; without a name, somebody with the token."""
    name = " ".join(names).strip()
    if name and (not _NAME.fullmatch(name) or name.isdecimal()):
        raise ProblemError(
            422, "name: expected up to 40 letters, digits, spaces, dots and hyphens, for the audit"
        )
    return f"{name}@web" if name else BY_TOKEN


def _unauthorized(detail: str) -> ProblemError:
    headers = {"WWW-Authenticate": 'Bearer realm="bot_ratelimit"'}
    return ProblemError(401, detail, headers=headers)
