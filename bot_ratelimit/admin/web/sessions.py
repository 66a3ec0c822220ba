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
from collections.abc import Callable
from dataclasses import asdict
from typing import Final

from aiohttp import web
from cachetools import TTLCache

from bot_ratelimit.admin.control import LOGINS
from bot_ratelimit.admin.web.console import Session
from bot_ratelimit.config.live import live_key
from bot_ratelimit.errors import StorageError
from bot_ratelimit.limiter.limiter import Limiter

SESSION_SECONDS: Final = 12 * 3_600
"""Seconds for which a session is valid that was opened with the token."""
MINI_APP_SESSION_SECONDS: Final = 3_600
"""Seconds for which a session is valid that was opened in Telegram."""
DEVICE_SECONDS: Final = 90 * 86_400
"""Seconds for which a browser is recognized after a login."""

_ID: Final = re.compile(r"[\w-]{43}", re.ASCII)


class Sessions:
    """Opens, finds and ends sessions.

    The secret is the token, the bot's token and the admins: a change of one of them ends all
    sessions. With the prefix it is the key of all hashes, so that bots in one process do not accept
    each other's.
    """

    def __init__(self, limiter: Limiter, secret: bytes, clock: Callable[[], float]) -> None:
        self._documents, self._prefix = limiter.storage.documents(), limiter.key_prefix
        self._key = hmac.digest(secret, f"bot_ratelimit admin {self._prefix}".encode(), "sha256")
        self._clock = clock
        # Browsers share cookies between ports: two pages on one host need different names.
        self._cookie = f"bot_ratelimit_{self._sign('name')[:8]}"
        self._device_cookie = f"{self._cookie}_device"
        # So that the page shows an outage to operators who were logged in before it.
        self._known: TTLCache[str, Session] = TTLCache(1_000, SESSION_SECONDS, timer=clock)

    async def open(self, by: str, https: bool, *, mini_app: bool) -> tuple[Session, list[str]]:
        """A new session, and its `Set-Cookie` headers.

        Raises:
            StorageError: Redis cannot be reached: there are no sessions then.
        """
        id_ = secrets.token_urlsafe(32)
        place = self._place(id_)
        lasts = MINI_APP_SESSION_SECONDS if mini_app else SESSION_SECONDS
        session = Session(by, secrets.token_urlsafe(32), int(self._clock()) + lasts)
        await self._documents.put(place, json.dumps(asdict(session)).encode(), lasts)
        self._known[place] = session
        cookies = [_header(self._cookie, id_, lasts, https, cross_site=mini_app)]
        if not mini_app:  # logins of this browser are counted separately from now on
            name = secrets.token_urlsafe(16)
            device = f"{name}.{self._sign(f'device {name}')}"
            cookies.append(_header(self._device_cookie, device, DEVICE_SECONDS, https))
        return session, cookies

    async def find(self, request: web.Request) -> Session | None:
        """The session of a request, if it has one.

        While Redis cannot be reached, only sessions that this process has seen are known.

        Raises:
            StorageError: Redis cannot be reached, and this process does not know the session.
        """
        place = self._place_of(request)
        if place is None:
            return None
        try:
            document = await self._documents.find(place)
        except StorageError:
            if place not in self._known:
                raise
        else:
            self._known.pop(place, None)
            if document is None:
                return None
            self._known[place] = Session(**json.loads(document))
        session = self._known[place]
        return session if self._clock() < session.expires else None

    async def end(self, request: web.Request, https: bool) -> list[str]:
        """End the session of a request, on every instance; the headers that delete its cookie.

        Raises:
            StorageError: Redis cannot be reached: the session goes on.
        """
        if (place := self._place_of(request)) is not None:
            await self._documents.take(place)
            self._known.pop(place, None)  # also in an outage that follows
        kinds = {False, https}
        return [_header(self._cookie, "", 0, https, cross_site=each) for each in sorted(kinds)]

    def device(self, request: web.Request) -> str | None:
        """The id of the browser, if it has logged in before."""
        cookie = request.cookies.get(self._device_cookie, "")
        name, _, signature = cookie.encode("ascii", "replace").decode().partition(".")
        return name if hmac.compare_digest(self._sign(f"device {name}"), signature) else None

    def _place_of(self, request: web.Request) -> str | None:
        id_ = request.cookies.get(self._cookie, "")
        return self._place(id_) if _ID.fullmatch(id_) else None

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
