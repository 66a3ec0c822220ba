"""Access: who may, and how they show it."""

from __future__ import annotations

import hmac
import re
from hashlib import sha256
from typing import Final

from aiohttp import web
from aiohttp.typedefs import Handler, Middleware
from multidict import MultiMapping

from bot_ratelimit.admin.encoding import to_json
from bot_ratelimit.admin.web.attempts import Attempts, Used
from bot_ratelimit.admin.web.bodies import form_of
from bot_ratelimit.admin.web.console import SESSION, Session, anybody, may_anybody, wants_page
from bot_ratelimit.admin.web.mini_app import InitDataError, MiniApp
from bot_ratelimit.admin.web.peer import SAFE, Peers
from bot_ratelimit.admin.web.problems import ProblemError
from bot_ratelimit.admin.web.sessions import (
    BY_TOKEN,
    KNOWN_FOR,
    LASTS,
    MINI_APP_LASTS,
    Sessions,
    cookie_header,
)
from bot_ratelimit.errors import ConfigError

CSRF_FIELD: Final = "csrf"
CSRF_HEADER: Final = "X-CSRF-Token"

_TOKEN: Final = re.compile(r"[!-~]{16,512}")
_VARIED: Final = 6


def check_token(token: object) -> str:
    """The token itself, if it is good enough.

    Raises:
        ConfigError: It is too short or too simple; the message does not show it.
    """
    if not isinstance(token, str) or not _TOKEN.fullmatch(token) or len(set(token)) < _VARIED:
        raise ConfigError(
            "RATE_LIMIT_ADMIN_TOKEN (or token=): expected 16 to 512 letters, digits and signs "
            "without spaces, and not a few again and again; make one with "
            "`python -c 'import secrets; print(secrets.token_urlsafe(32))'`"
        )
    return token


class Access:
    """Lets requests in, opens and ends sessions, and checks that a change comes from our own page.

    Args:
        token: What scripts send with every request, and people in the login form; None if nobody
            may enter with a token.
        mini_app: Checks initData; None if nobody may enter from Telegram.
        sessions: Opens sessions and recognizes them.
        attempts: Counts failed logins.
        used: Remembers sessions that were logged out, and initData that was used.
        peers: Tells where requests come from.
    """

    def __init__(
        self,
        token: str | None,
        mini_app: MiniApp | None,
        sessions: Sessions,
        attempts: Attempts,
        used: Used,
        peers: Peers,
    ) -> None:
        self._token = None if token is None else sha256(token.encode()).digest()
        self._mini_app, self._sessions = mini_app, sessions
        self._attempts, self._used, self._peers = attempts, used, peers

    def routes(self) -> list[web.RouteDef]:
        """Login and logout."""
        return [web.post("/login", self._login), web.post("/logout", self._logout)]

    def middleware(self) -> Middleware:
        """Runs before every handler.

        Strangers get 401 for every path, also for one that does not exist, so that they cannot
        find out which paths there are.
        """

        @web.middleware
        async def check(request: web.Request, handler: Handler) -> web.StreamResponse:
            session = await self._session(request)
            is_open = may_anybody(request)
            if session is not None:
                request[SESSION] = session
            elif not is_open:
                raise _unauthorized("show the token, or log in")
            if request.method not in SAFE:
                await self._check_change(request, session, is_open)
            return await handler(request)

        return check

    async def _session(self, request: web.Request) -> Session | None:
        shown = request.headers.getall("Authorization", [])
        bearers = [each for each in shown if each[:7].lower() == "bearer "]
        if bearers:  # any other scheme is meant for a proxy before this server
            wrong = None if self._is_right(bearers) else _unauthorized("this token is wrong")
            await self._attempts.judge(wrong, self._peers.source(request))
            return Session(BY_TOKEN, "", float("inf"))
        held = self._sessions.find(request)
        if held is None or await self._used.is_used(f"session {held.id}"):
            return None
        return held.session

    def _is_right(self, bearers: list[str]) -> bool:
        return len(bearers) == 1 and self._is_token(bearers[0][7:].strip())

    def _is_token(self, given: str) -> bool:
        # Hashes have one length, so that the time says nothing of the token's.
        hashed = sha256(given.encode("utf-8", "surrogateescape")).digest()
        return self._token is not None and hmac.compare_digest(hashed, self._token)

    async def _check_change(
        self, request: web.Request, session: Session | None, is_open: bool
    ) -> None:
        if session is not None and not session.csrf:
            return  # browsers do not send a bearer token on their own
        if not self._peers.is_own_page(request):
            raise ProblemError(403, "the request comes from a page of another site")
        if session is None or is_open:
            return
        given = request.headers.getall(CSRF_HEADER, [])
        if not given:
            form: MultiMapping[str] = await form_of(request, of_csrf=True)
            given = form.getall(CSRF_FIELD, [])
        right = session.csrf.encode()
        if len(given) != 1 or not hmac.compare_digest(given[0].encode("utf-8", "replace"), right):
            raise ProblemError(403, "the CSRF token is missing or wrong: load the page again")

    @anybody
    async def _login(self, request: web.Request) -> web.StreamResponse:
        form = await form_of(request)
        tokens, init_data = form.getall("token", []), form.getall("init_data", [])
        if len(tokens) + len(init_data) != 1:
            raise ProblemError(400, "expected one field: either token or init_data")
        user = None
        if tokens:
            await self._judge_token(request, tokens[0])
        else:
            user = await self._judge_init_data(request, init_data[0])
        return self._let_in(request, user)

    async def _judge_token(self, request: web.Request, token: str) -> None:
        wrong = None if self._is_token(token) else _unauthorized("this token is wrong")
        device = self._sessions.device(request)
        await self._attempts.judge(wrong, self._peers.source(request), device)

    async def _judge_init_data(self, request: web.Request, init_data: str) -> int:
        """The id of the admin who opened the page in Telegram.

        The right initData passes even while the address is slowed: a signature cannot be guessed.
        """
        try:
            if self._mini_app is None:
                raise InitDataError(401, "this page is not opened in Telegram")
            user, opening = self._mini_app.opened(init_data)
            if not await self._used.use(f"initData {opening}"):
                raise InitDataError(401, "this initData was used: open the page again in Telegram")
        except InitDataError as wrong:
            await self._attempts.judge(wrong, self._peers.source(request), telegram=True)
            raise
        return user

    def _let_in(self, request: web.Request, user: int | None) -> web.StreamResponse:
        value, session = self._sessions.open(user)
        https, lasts = self._peers.is_https(request), LASTS if user is None else MINI_APP_LASTS
        response: web.Response
        if wants_page(request):
            response = web.Response(status=303, headers={"Location": "./"})
        else:
            content = {"by": session.by, "csrf": session.csrf, "expires": session.expires}
            response = web.Response(text=to_json(content), content_type="application/json")
        cookies = [(self._sessions.cookie, value, lasts)]
        if user is None:
            cookies.append((self._sessions.device_cookie, self._sessions.know(), KNOWN_FOR))
        for name, text, seconds in cookies:
            header = cookie_header(name, text, seconds, https=https, cross_site=user is not None)
            response.headers.add("Set-Cookie", header)
        return response

    async def _logout(self, request: web.Request) -> web.StreamResponse:
        held = self._sessions.find(request)
        if held is not None:
            await self._used.use(f"session {held.id}")
        response = web.Response(status=303, headers={"Location": "./"})
        cross_site = held is not None and held.session.by != BY_TOKEN
        https = self._peers.is_https(request)
        header = cookie_header(self._sessions.cookie, "", 0, https=https, cross_site=cross_site)
        response.headers.add("Set-Cookie", header)
        return response


def _unauthorized(detail: str) -> ProblemError:
    headers = {"WWW-Authenticate": 'Bearer realm="bot_ratelimit"'}
    return ProblemError(401, detail, headers=headers)
