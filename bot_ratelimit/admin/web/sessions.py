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
from typing import Final

from aiohttp import web
from cachetools import TTLCache

from bot_ratelimit.admin.control import LOGINS
from bot_ratelimit.admin.web.console import Session, Visit
from bot_ratelimit.config.live import live_key
from bot_ratelimit.errors import RateLimitError, StorageError
from bot_ratelimit.limiter.limiter import Limiter

SESSION_SECONDS: Final = 12 * 3_600
"""Seconds for which a session is valid that was opened with the token."""
MINI_APP_SESSION_SECONDS: Final = 3_600
"""Seconds for which a session is valid that was opened in Telegram."""
DEVICE_SECONDS: Final = 90 * 86_400
"""Seconds for which a browser is recognized after a login."""

_ID: Final = re.compile(r"v2\.([\w-]{43})", re.ASCII)
_DEVICE: Final = re.compile(r"v2\.([\w-]{22})\.(\d{1,12})\.([\w-]{43})", re.ASCII)


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
        self._documents, self._prefix = limiter.storage.documents(), limiter.key_prefix
        self._key = hmac.digest(secret, f"bot_ratelimit admin {self._prefix}".encode(), "sha256")
        self._admins, self._has_token, self._clock = admins, has_token, clock
        # Browsers share cookies between ports: two pages on one host need different names.
        self._cookie = f"bot_ratelimit_{self._sign('name')[:8]}"
        self._device_cookie = f"{self._cookie}_device"
        # So that the page shows an outage to operators who were logged in before it.
        self._known: TTLCache[str, Session] = TTLCache(1_000, SESSION_SECONDS, timer=clock)
        self._to_end: TTLCache[str, bool] = TTLCache(1_000, SESSION_SECONDS, timer=clock)

    async def open(self, user: int | None, by: str, https: bool) -> tuple[Session, list[str]]:
        """A new session, of a Telegram user or by token, and its `Set-Cookie` headers.

        Raises:
            StorageError: Redis cannot be reached: there are no sessions then.
        """
        id_ = secrets.token_urlsafe(32)
        lasts = SESSION_SECONDS if user is None else MINI_APP_SESSION_SECONDS
        expires = int(self._clock()) + lasts
        document = json.dumps({"by": by, "user": user, "expires": expires})
        place = self._place(id_)
        try:
            await self._documents.put(place, document.encode(), lasts)
        except StorageError:
            raise StorageError(
                "Redis, which keeps the sessions of this page, cannot be reached: log in when it "
                "is back"
            ) from None
        self._known[place] = Session(by, self._sign(f"csrf {id_}"), expires)
        cookies = [_header(self._cookie, f"v2.{id_}", lasts, https, cross_site=user is not None)]
        if user is None:  # logins of this browser are counted separately from now on
            content = f"v2.{secrets.token_urlsafe(16)}.{int(self._clock()) + DEVICE_SECONDS}"
            device = f"{content}.{self._sign('device ' + content)}"
            cookies.append(_header(self._device_cookie, device, DEVICE_SECONDS, https))
        return self._known[place], cookies

    async def find(self, request: web.Request) -> Visit:
        """The session of a request, if it has one, and whether that has ended or was lost.

        While Redis cannot be reached, only sessions that this process has seen are known.

        Raises:
            StorageError: Redis cannot be reached, and this process does not know the session.
        """
        match = _ID.fullmatch(request.cookies.get(self._cookie, ""))
        if match is None:
            return Visit(None)
        place, now = self._place(match[1]), self._clock()
        if place in self._to_end:
            await self._end_later()
            return Visit(None)
        try:
            document = await self._documents.find(place)
        except StorageError:
            if place not in self._known:
                raise
            session = self._known[place]
            return Visit(session if now < session.expires else None)
        await self._end_later()
        if document is None:
            self._known.pop(place, None)
            return Visit(None, is_lost=True)
        found = json.loads(document)
        may = self._has_token if found["user"] is None else found["user"] in self._admins
        if not may or now >= found["expires"]:
            return Visit(None)
        csrf = self._sign(f"csrf {match[1]}")
        session = self._known[place] = Session(found["by"], csrf, found["expires"])
        return Visit(session)

    async def end(self, request: web.Request, https: bool) -> list[str]:
        """End the session of a request, on every instance; in an outage as soon as it is over.

        Returns:
            The `Set-Cookie` headers that delete its cookie.
        """
        match = _ID.fullmatch(request.cookies.get(self._cookie, ""))
        if match is not None:
            place = self._place(match[1])
            self._known.pop(place, None)
            self._to_end[place] = True
            await self._end_later()
        kinds = {False, https}
        return [_header(self._cookie, "", 0, https, cross_site=each) for each in sorted(kinds)]

    def device(self, request: web.Request) -> str | None:
        """The id of the browser, if it has logged in before."""
        found = _DEVICE.fullmatch(request.cookies.get(self._device_cookie, ""))
        if found is None:
            return None
        content, _, signature = found[0].rpartition(".")
        is_genuine = hmac.compare_digest(self._sign(f"device {content}"), signature)
        return found[1] if is_genuine and self._clock() < int(found[2]) else None

    async def _end_later(self) -> None:
        """Delete the sessions that were logged out while Redis could not be reached, too."""
        with suppress(RateLimitError):
            for place in list(self._to_end):
                await self._documents.take(place)
                self._to_end.pop(place, None)

    def _place(self, id_: str) -> str:
        return live_key(self._prefix, f"{LOGINS}session:{self._sign('session ' + id_)}")

    def _sign(self, text: str) -> str:
        signature = hmac.digest(self._key, text.encode(), "sha256")
        return urlsafe_b64encode(signature).decode().rstrip("=")


def _header(name: str, value: str, seconds: int, https: bool, *, cross_site: bool = False) -> str:
    """A `Set-Cookie` header. Without a path, the cookie is valid for the folder of the login.

    Telegram's web clients show a Mini App in a frame of another site, to which browsers send only
    cookies with `SameSite=None`, and those only over HTTPS; `Partitioned` keeps them to that frame.
    """
    parts = [f"{name}={value}", f"Max-Age={seconds}", "HttpOnly"]
    parts += ["SameSite=None", "Partitioned"] if cross_site and https else ["SameSite=Strict"]
    return "; ".join([*parts, "Secure"] if https else parts)
