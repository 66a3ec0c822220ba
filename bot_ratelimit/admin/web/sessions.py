"""Sessions: documents in Redis with a TTL, so that every instance knows them.

A cookie has a random id; the document is under `<prefix>:ratelimit:{login}:session:<hash>`. Logging
out deletes it. An emptied Redis has no sessions any more.
"""

from __future__ import annotations

import hmac
import json
import re
import secrets
from base64 import urlsafe_b64encode
from collections.abc import Callable, Collection
from contextlib import suppress
from hashlib import sha256
from typing import Final

from aiohttp import web
from cachetools import TTLCache

from bot_ratelimit.admin.control import LOGINS
from bot_ratelimit.admin.web.console import Session
from bot_ratelimit.config.live import live_key
from bot_ratelimit.errors import RateLimitError, StorageError
from bot_ratelimit.limiter.limiter import Limiter
from bot_ratelimit.storage.base import documents_of

SESSION_SECONDS: Final = 12 * 3_600
"""Seconds for which a session is valid that was opened with the token."""
MINI_APP_SESSION_SECONDS: Final = 3_600
"""Seconds for which a session is valid that was opened in Telegram."""
DEVICE_SECONDS: Final = 90 * 86_400
"""Seconds for which a browser is recognized after a login."""

BY_TOKEN: Final = "token@web"  # noqa: S105 - what the audit says, no password

_ID: Final = re.compile(r"v2\.([\w-]{43})", re.ASCII)
_DEVICE: Final = re.compile(r"v2\.([\w-]{22})\.(\d{1,12})\.([\w-]{43})", re.ASCII)


class SessionLostError(Exception):
    """The cookie is of a session that does not exist any more."""


class Sessions:
    """Opens, finds and ends sessions.

    Hashes are made with a key of the token, the bot's token and the prefix: changing one of the
    tokens ends all sessions, and bots in one process do not accept each other's.

    Args:
        limiter: The bot's limiter, whose storage keeps the sessions.
        secret: The token and the bot's token.
        admins: Ids of the Telegram users whose sessions are valid.
        has_token: Whether sessions by token are valid.
        clock: Unix seconds.
    """

    def __init__(
        self,
        limiter: Limiter,
        secret: bytes,
        admins: Collection[int],
        has_token: bool,
        clock: Callable[[], float],
    ) -> None:
        self._documents, self._prefix = documents_of(limiter.storage), limiter.key_prefix
        self._key = hmac.digest(secret, f"bot_ratelimit admin {self._prefix}".encode(), "sha256")
        self._admins, self._has_token, self._clock = admins, has_token, clock
        # Browsers share cookies between ports: two pages on one host need different names.
        self.cookie = f"bot_ratelimit_{self._sign('name')[:8]}"
        self.device_cookie = f"{self.cookie}_device"
        # So that the page shows an outage to operators who were logged in before it.
        self._known: TTLCache[str, Session] = TTLCache(1_000, SESSION_SECONDS, timer=clock)
        self._to_end: TTLCache[str, bool] = TTLCache(1_000, SESSION_SECONDS, timer=clock)

    async def open(self, user: int | None, by: str) -> tuple[str, Session]:
        """A new session, of a Telegram user or by token, and the value of its cookie.

        Raises:
            StorageError: Redis cannot be reached: there are no sessions then.
        """
        id_ = secrets.token_urlsafe(32)
        seconds = SESSION_SECONDS if user is None else MINI_APP_SESSION_SECONDS
        expires = int(self._clock()) + seconds
        document = json.dumps({"by": by, "user": user, "expires": expires})
        try:
            await self._documents.put(self._place(id_), document.encode(), seconds)
        except StorageError:
            raise StorageError(
                "Redis, which keeps the sessions of this page, cannot be reached: log in when it "
                "is back"
            ) from None
        session = self._known[self._place(id_)] = Session(by, self._sign(f"csrf {id_}"), expires)
        return f"v2.{id_}", session

    async def find(self, request: web.Request) -> Session | None:
        """The session of a request; None without a cookie of one.

        While Redis cannot be reached, only sessions that this process has seen are known.

        Raises:
            SessionLostError: The session has ended, or Redis has lost it.
            StorageError: Redis cannot be reached, and this process does not know the session.
        """
        match = _ID.fullmatch(request.cookies.get(self.cookie, ""))
        if match is None:
            return None
        place = self._place(match[1])
        if place in self._to_end:
            await self._end_later()
            return None
        try:
            document = await self._documents.find(place)
        except StorageError:
            if place not in self._known:
                raise
            session = self._known[place]
            return session if self._clock() < session.expires else None
        await self._end_later()
        if document is None:
            self._known.pop(place, None)
            raise SessionLostError
        found = json.loads(document)
        user = found["user"]
        may = self._has_token if user is None else user in self._admins
        if not may or self._clock() >= found["expires"]:
            return None
        session = Session(found["by"], self._sign(f"csrf {match[1]}"), found["expires"])
        self._known[place] = session
        return session

    async def end(self, request: web.Request) -> None:
        """End the session of a request, on every instance; in an outage as soon as it is over."""
        match = _ID.fullmatch(request.cookies.get(self.cookie, ""))
        if match is not None:
            place = self._place(match[1])
            self._known.pop(place, None)
            self._to_end[place] = True
            await self._end_later()

    async def _end_later(self) -> None:
        """Delete the sessions that were logged out while Redis could not be reached, too."""
        with suppress(RateLimitError):
            for place in list(self._to_end):
                await self._documents.take(place)
                self._to_end.pop(place, None)

    def new_device_cookie(self) -> str:
        """The value of a cookie that identifies a browser, to count its logins separately."""
        content = f"v2.{secrets.token_urlsafe(16)}.{int(self._clock()) + DEVICE_SECONDS}"
        return f"{content}.{self._sign('device ' + content)}"

    def device(self, request: web.Request) -> str | None:
        """The id of the browser, if it has logged in before."""
        found = _DEVICE.fullmatch(request.cookies.get(self.device_cookie, ""))
        if found is None:
            return None
        content, _, signature = found[0].rpartition(".")
        is_genuine = hmac.compare_digest(self._sign(f"device {content}"), signature)
        return found[1] if is_genuine and self._clock() < int(found[2]) else None

    def _place(self, id_: str) -> str:
        return live_key(self._prefix, f"{LOGINS}session:{self._sign('session ' + id_)}")

    def _sign(self, text: str) -> str:
        signature = hmac.digest(self._key, text.encode(), sha256)
        return urlsafe_b64encode(signature).decode().rstrip("=")


def cookie_header(
    name: str, value: str, seconds: int, *, https: bool, cross_site: bool = False
) -> str:
    """A `Set-Cookie` header. Without a path, the cookie is valid for the folder of the login.

    Telegram's web clients show a Mini App in a frame of another site, to which browsers send only
    cookies with `SameSite=None`, and those only over HTTPS; `Partitioned` keeps them to that frame.
    """
    parts = [f"{name}={value}", f"Max-Age={seconds}", "HttpOnly"]
    if cross_site and https:
        parts += ["SameSite=None", "Partitioned"]
    else:
        parts += ["SameSite=Strict"]
    return "; ".join([*parts, "Secure"] if https else parts)
