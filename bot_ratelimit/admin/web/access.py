"""Access: who may, and how they show it."""

from __future__ import annotations

import hmac
import secrets
from dataclasses import dataclass
from typing import Final

from aiohttp import web
from aiohttp.typedefs import Handler

from bot_ratelimit.admin.web.console import SESSION, Console, Session
from bot_ratelimit.admin.web.problems import ProblemError

COOKIE: Final = "bot_ratelimit"
BY_TOKEN: Final = "token@web"  # noqa: S105 - no password, but a name
LIFETIME: Final = 12 * 3_600


@dataclass(eq=False)
class Access:
    """Lets requests in, or does not."""

    def __init__(self, console: Console, token: str | None, bot_token: str | None) -> None:
        self._console, self._token, self._bot_token = console, token, bot_token
        self._sessions: dict[str, Session] = {}

    def routes(self) -> list[web.RouteDef]:
        """Login and logout."""
        return [web.post("/login", self._login), web.post("/logout", self._logout)]

    @property
    def check(self):  # type: ignore[no-untyped-def]
        """The middleware."""

        @web.middleware
        async def check(request: web.Request, handler: Handler) -> web.StreamResponse:
            session = self._session(request)
            if session is not None:
                request[SESSION] = session
            elif not getattr(request.match_info.handler, "anybody", False):
                if request.match_info.handler != self._login:
                    raise ProblemError(401, "log in first")
            if session is not None and session.csrf and request.method not in {"GET", "HEAD"}:
                given = request.headers.get("X-CSRF-Token") or (await request.post()).get("csrf")
                if given != session.csrf:
                    raise ProblemError(403, "the CSRF token is missing or wrong")
            return await handler(request)

        return check

    def _session(self, request: web.Request) -> Session | None:
        header = request.headers.get("Authorization")
        if header is not None:
            if self._is_right(header.removeprefix("Bearer ")):
                return Session(BY_TOKEN, "", float("inf"))
            raise ProblemError(401, "the token is wrong")
        return self._sessions.get(request.cookies.get(COOKIE, ""))

    async def _login(self, request: web.Request) -> web.StreamResponse:
        form = await request.post()
        if not self._is_right(str(form.get("token", ""))):
            raise ProblemError(401, "the token is wrong")
        sid = secrets.token_urlsafe()
        expires = self._console.clock() + LIFETIME
        self._sessions[sid] = Session(BY_TOKEN, secrets.token_urlsafe(), expires)
        answer = web.HTTPSeeOther("./")
        answer.headers["Set-Cookie"] = f"{COOKIE}={sid}; HttpOnly; SameSite=Strict"
        raise answer

    async def _logout(self, request: web.Request) -> web.StreamResponse:
        self._sessions.pop(request.cookies.get(COOKIE, ""), None)
        raise web.HTTPSeeOther("./")

    def _is_right(self, token: str) -> bool:
        return self._token is not None and hmac.compare_digest(token.encode(), self._token.encode())
