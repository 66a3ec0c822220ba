"""Logins: what opens a session, and how guessing is slowed down, by this package itself.

| key | counts |
| --- | --- |
| `<prefix>:ratelimit:{login}:from:<address>` | attempts of an address in the login form |
| `<prefix>:ratelimit:{login}:bearer:<address>` | wrong bearer tokens of an address |
| `<prefix>:ratelimit:{login}:telegram:<address>` | wrong initData of an address |
| `<prefix>:ratelimit:{login}:all` | attempts of all addresses together |
| `<prefix>:ratelimit:{login}:telegram` | wrong initData of all addresses together |
| `<prefix>:ratelimit:{login}:device:<id>` | attempts of a browser that logged in before |
| `<prefix>:ratelimit:{login}:used:<hash>` | initData that was used |
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Collection
from hashlib import sha256
from typing import Final, Literal
from urllib.parse import parse_qsl

from aiogram.utils.web_app import safe_parse_webapp_init_data
from cachetools import TTLCache

from bot_ratelimit.admin.control import LOGINS
from bot_ratelimit.admin.web.problems import ProblemError
from bot_ratelimit.errors import StorageError
from bot_ratelimit.limiter.decider import Decider
from bot_ratelimit.limiter.limiter import Limiter
from bot_ratelimit.rules.limit import Limit
from bot_ratelimit.rules.rule import Rules, Subject, rule_at

log = logging.getLogger("bot_ratelimit")

OF_ONE: Final = Limit(5, 60)
"""Failed attempts of an address, or of a known browser."""
OF_ALL: Final = Limit(60, 60)
"""Failed attempts of all addresses together, because an attacker may use many addresses."""
MAX_AGE: Final = 300
"""Seconds for which initData is valid."""
MAX_SKEW: Final = 30
"""Seconds by which the clock of Telegram may be ahead of ours."""
_MAX_LENGTH: Final = 8_192
_TRUSTED_FOR: Final = 3_600.0
_ONCE: Final = Limit(1, 86_400.0)  # longer than initData is valid
_NOBODY: Final = Subject()


class InitDataError(ProblemError):
    """This initData is not valid: forged, too old, used, or of a user without access."""


def opened(
    init_data: str, bot_token: str, admins: Collection[int], clock: Callable[[], float]
) -> tuple[int, str]:
    """The id of the admin who opened the page in Telegram, and what identifies this initData.

    Telegram's signature identifies it: the same fields in another order or with another URL
    encoding have the same signature.

    Raises:
        InitDataError: 401 if it is forged or too old; 403 if its user is not an admin.
    """
    try:
        # If a field is given twice, it would be unclear which of them counts.
        names = [name for name, _ in parse_qsl(init_data, keep_blank_values=True)]
        if len(init_data) > _MAX_LENGTH or len(names) != len(set(names)):
            raise ValueError
        found = safe_parse_webapp_init_data(bot_token, init_data)
    except (ValueError, TypeError, RecursionError):
        # Not chained: the details must not reach the client.
        detail = "the initData is not from Telegram, or belongs to another bot"
        raise InitDataError(401, detail) from None
    age = clock() - found.auth_date.timestamp()
    if age < -MAX_SKEW:
        raise InitDataError(401, "the initData is from the future: set this server's clock")
    if age > MAX_AGE:
        raise InitDataError(401, "the initData is too old: open the page again in Telegram")
    if found.user is None or found.user.id not in admins:
        raise InitDataError(403, "this Telegram user is not an admin")
    return found.user.id, found.hash


class LoginLimiter:
    """Slows down clients that guess a secret, and lets each initData be used once.

    While an address is slowed down, the right secret is refused like a wrong one: otherwise
    guessing would not be slowed down at all. Operators are not locked out: open sessions keep
    working, a browser that logged in before is counted separately (see `Sessions.device`), and a
    script that sent the right token within the last hour keeps its access, as long as its address
    sends no wrong bearer token. While the storage cannot be reached, this process keeps the counts.
    """

    def __init__(self, limiter: Limiter) -> None:
        self._decider = Decider(
            limiter.storage,
            limiter.key_prefix,
            on_error="memory",
            timeout=limiter.timeout,
            part="logins",
            consequence="each instance limits logins of the page by its own counts",
        )
        self._succeeded: TTLCache[str, bool] = TTLCache(1_000, _TRUSTED_FOR, timer=time.monotonic)

    async def check(
        self,
        failure: ProblemError | None,
        source: str,
        device: str | None = None,
        *,
        place: Literal["from", "bearer", "telegram"] = "from",
    ) -> None:
        """Let the right secret pass, and count a wrong one: that has a failure.

        Wrong initData is counted separately: any link to the page can carry some, and so let an
        operator's own browser send it. So are bearer tokens: guesses in the login form do not lock
        out a script at the same address.

        Raises:
            ProblemError: The failure; or 429 after too many failures, even for the right secret.
        """
        shared = "telegram" if place == "telegram" else "all"
        key = f"{place}:{source}" if device is None else f"device:{device}"
        if failure is None and key in self._succeeded:
            return
        self._succeeded.pop(key, None)
        rules = [rule_at(LOGINS, OF_ONE, lambda _: key, 1)]
        if device is None:
            rules.append(rule_at(f"{LOGINS}{shared}", OF_ALL, lambda _: "", 1))
        # One command counts the failure and answers it, so parallel guesses gain nothing.
        decision = await self._decider.hit(Rules(rules), _NOBODY, peek=failure is None)
        if not decision:
            wait = max(1, math.ceil(decision.retry_after))
            text = f"too many failed logins: try again in {wait} seconds"
            headers = {"Retry-After": str(wait)}
            raise ProblemError(429, text, retry_after=wait, headers=headers)
        if failure is not None:
            log.warning("admin_app: a login failed, from %s: %s", source, failure)
            raise failure
        self._succeeded[key] = True

    async def use(self, opening: str) -> None:
        """Mark initData as used, on every instance; InitDataError if it was.

        Raises:
            StorageError: The storage cannot be reached, so another instance may have seen it.
        """
        hashed = sha256(f"initData {opening}".encode()).hexdigest()
        decision = await self._decider.hit(
            Rules((rule_at(f"{LOGINS}used:", _ONCE, lambda _: hashed, 1),)), _NOBODY
        )
        if decision.source != self._decider.storage.source:
            raise StorageError(
                "Redis, which remembers used initData, cannot be reached: open the page again in "
                "Telegram when Redis is back"
            )
        if not decision:
            text = "this initData was used before: open the page again in Telegram"
            raise InitDataError(401, text)
