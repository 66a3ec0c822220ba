"""Sessions: signed cookies, which can be checked without a storage."""

from __future__ import annotations

import hmac
import re
import secrets
from base64 import urlsafe_b64encode
from collections.abc import Callable, Collection
from dataclasses import dataclass
from hashlib import sha256
from typing import Final

from aiohttp import web

from bot_ratelimit.admin.web.console import Session

SESSION_SECONDS: Final = 12 * 3_600
"""Seconds for which a session is valid that was opened with the token."""
MINI_APP_SESSION_SECONDS: Final = 3_600
"""Seconds for which a session is valid that was opened in Telegram."""
DEVICE_SECONDS: Final = 90 * 86_400
"""Seconds for which a browser is recognized after a login."""

BY_TOKEN: Final = "token@web"  # noqa: S105 - what the audit says, no password

_COOKIE: Final = re.compile(r"v1\.([\w-]{22,30})\.(\d{1,16})\.(\d{1,12})\.([\w-]{43})", re.ASCII)
_RANDOM: Final = 22
"""Characters of 16 random bytes."""
_DEVICE: Final = re.compile(r"v1\.([\w-]{22})\.(\d{1,12})\.([\w-]{43})", re.ASCII)


@dataclass(frozen=True, slots=True)
class CookieSession:
    """A session, and its id from the cookie."""

    id: str
    session: Session

    @property
    def generation(self) -> str:
        """In which it was opened, see `Generation`; empty without Redis."""
        return self.id[:-_RANDOM]


class Sessions:
    """Opens sessions, and recognizes them in later requests.

    The cookie is `v1.<id>.<user>.<expires>.<signature>`, where the user is 0 for the token, and the
    id consists of the `Generation` and 22 random characters. The signing key is derived from the
    token, the bot's token and the key prefix: changing one of the tokens ends all sessions, and
    bots in one process do not accept each other's sessions.

    Args:
        secret: The token and the bot's token.
        prefix: The key prefix of the bot.
        admins: Ids of the Telegram users whose sessions are valid.
        has_token: Whether sessions by token are valid.
        clock: Unix seconds.
    """

    def __init__(
        self,
        secret: bytes,
        prefix: str,
        admins: Collection[int],
        has_token: bool,
        clock: Callable[[], float],
    ) -> None:
        self._key = hmac.digest(secret, f"bot_ratelimit admin {prefix}".encode(), "sha256")
        self._admins, self._has_token, self._clock = admins, has_token, clock
        # Browsers share cookies between ports: two pages on one host need different names.
        self.cookie = f"bot_ratelimit_{self._sign('name')[:8]}"
        self.device_cookie = f"{self.cookie}_device"

    def open(self, user: int | None, generation: str) -> tuple[str, Session]:
        """A new session, of a Telegram user or by token, and the value of its cookie."""
        expires = int(self._clock()) + (
            SESSION_SECONDS if user is None else MINI_APP_SESSION_SECONDS
        )
        id_ = generation + secrets.token_urlsafe(16)
        content = f"v1.{id_}.{user or 0}.{expires}"
        return f"{content}.{self._sign(content)}", self._session(id_, user or 0, expires)

    def find(self, request: web.Request) -> CookieSession | None:
        """The session of a request, if its cookie is genuine and has not expired."""
        found = _COOKIE.fullmatch(request.cookies.get(self.cookie, ""))
        if found is None or not self._is_signed(found):
            return None
        user, expires = int(found[2]), int(found[3])
        may = user in self._admins if user else self._has_token
        if not may or self._clock() >= expires:
            return None
        return CookieSession(found[1], self._session(found[1], user, expires))

    def new_device_cookie(self) -> str:
        """The value of a cookie that identifies a browser, to count its logins separately."""
        content = f"v1.{secrets.token_urlsafe(16)}.{int(self._clock()) + DEVICE_SECONDS}"
        return f"{content}.{self._sign('device ' + content)}"

    def device(self, request: web.Request) -> str | None:
        """The id of the browser, if it has logged in before."""
        found = _DEVICE.fullmatch(request.cookies.get(self.device_cookie, ""))
        if found is None or not self._is_signed(found, "device "):
            return None
        return found[1] if self._clock() < int(found[2]) else None

    def _session(self, id_: str, user: int, expires: int) -> Session:
        by = f"{user}@web" if user else BY_TOKEN
        return Session(by, self._sign(f"csrf {id_}"), expires)

    def _is_signed(self, found: re.Match[str], kind: str = "") -> bool:
        content, _, signature = found[0].rpartition(".")
        return hmac.compare_digest(self._sign(kind + content), signature)

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
