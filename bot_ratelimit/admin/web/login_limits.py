"""Login limits: failed logins are limited by this package itself.

| key | counts |
| --- | --- |
| `<prefix>:ratelimit:{login}:from:<address>` | attempts of an address |
| `<prefix>:ratelimit:{login}:telegram:<address>` | wrong initData of an address |
| `<prefix>:ratelimit:{login}:all` | attempts of all addresses together |
| `<prefix>:ratelimit:{login}:telegram` | wrong initData of all addresses together |
| `<prefix>:ratelimit:{login}:device:<id>` | attempts of a browser that logged in before |
| `<prefix>:ratelimit:{login}:used:<hash>` | initData that was used |
"""

from __future__ import annotations

import asyncio
import logging
import math
import time
from contextlib import suppress
from hashlib import sha256
from typing import Final
from weakref import WeakValueDictionary

from cachetools import TTLCache

from bot_ratelimit.admin.control import LOGINS
from bot_ratelimit.admin.web.problems import ProblemError
from bot_ratelimit.errors import RateLimitError, StorageError
from bot_ratelimit.limiter.decider import Decider
from bot_ratelimit.limiter.limiter import Limiter
from bot_ratelimit.rules.limit import Limit
from bot_ratelimit.rules.rule import Rules, Subject, rule_at

log = logging.getLogger("bot_ratelimit")

OF_ONE: Final = Limit(5, 60)
"""Failed attempts of an address, or of a known browser."""
OF_ALL: Final = Limit(60, 60)
"""Failed attempts of all addresses together, because an attacker may use many addresses."""
LONGEST: Final = 86_400.0
"""Seconds for which used initData is remembered: longer than it is valid."""

_TRUSTED_FOR: Final = 3_600.0
_NOBODY: Final = Subject()


class LoginLimiter:
    """Slows down clients that guess a secret.

    While an address is slowed down, the right secret is refused like a wrong one: otherwise
    guessing would not be slowed down at all. Operators are not locked out: open sessions keep
    working, a browser that logged in before is counted separately (see `Sessions.device`), and a
    script that sent the right secret within the last hour keeps its access, as long as nobody
    guesses from its address.

    Args:
        limiter: The bot's limiter. Its storage keeps the counts; while the storage cannot be
            reached, this process keeps them.
    """

    def __init__(self, limiter: Limiter) -> None:
        self._limiter = limiter
        self._decider = _own(limiter)
        self._succeeded: TTLCache[str, bool] = TTLCache(1_000, _TRUSTED_FOR, timer=time.monotonic)
        self._locks: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()

    async def check(
        self,
        failure: ProblemError | None,
        source: str,
        device: str | None = None,
        *,
        telegram: bool = False,
    ) -> None:
        """Let the right secret pass, and count a wrong one.

        Wrong initData is counted separately: any link to the page can carry some, and so let an
        operator's own browser send it.

        Args:
            failure: Why the login is refused; None if the secret is right.
            source: The client's address, see `TrustedProxies.client_address`.
            device: The id of the browser, if it has logged in before.
            telegram: Whether it is initData.

        Raises:
            ProblemError: The failure; or 429 after too many failures, even for the right secret.
        """
        place, shared = ("telegram", "telegram") if telegram else ("from", "all")
        key = f"{place}:{source}" if device is None else f"device:{device}"
        if failure is not None:
            self._succeeded.pop(key, None)
        lock = self._locks.setdefault(key, asyncio.Lock())
        if failure is None and key in self._succeeded:
            return
        async with lock:  # so that many correct logins at once do not use up the attempts
            if failure is None and key in self._succeeded:
                return
            rules = _rules(key, shared if device is None else None)
            # Charged before the result is known, so that parallel guesses gain nothing.
            decision = await self._decider.hit(rules, _NOBODY)
            if not decision:
                raise _slowed(decision.retry_after)
            if failure is not None:
                log.warning("admin_app: a login failed, from %s: %s", source, failure)
                raise failure
            with suppress(RateLimitError):
                await self._limiter.refund(rules, _NOBODY)
            self._succeeded[key] = True


class UsedInitData:
    """Remembers, on every instance, which initData must not be used again.

    Args:
        limiter: The bot's limiter, whose storage remembers it.
    """

    def __init__(self, limiter: Limiter) -> None:
        self._decider = _own(limiter)

    async def use(self, init_data: str) -> bool:
        """Mark initData as used; False if it was used before, at any instance.

        Raises:
            StorageError: The storage cannot be reached, so another instance may have seen it.
        """
        decision = await self._decider.hit(_once(init_data), _NOBODY)
        if decision.source != self._decider.storage.source:
            raise StorageError(
                "Redis, which remembers used initData, cannot be reached: open the page again in "
                "Telegram when Redis is back"
            )
        return bool(decision)


def _own(limiter: Limiter) -> Decider:
    """Decides on the bot's storage, and by this process's counts in an outage."""
    return Decider(
        limiter.storage,
        limiter.key_prefix,
        on_error="memory",
        timeout=limiter.timeout,
        part="logins",
        consequences={"memory": "each instance limits logins of the page by its own counts"},
    )


def _rules(key: str, shared: str | None) -> Rules:
    own = rule_at(LOGINS, OF_ONE, lambda _: key, 1)
    if shared is None:
        return Rules((own,))
    return Rules((own, rule_at(f"{LOGINS}{shared}", OF_ALL, lambda _: "", 1)))


def _once(what: str) -> Rules:
    hashed = sha256(what.encode()).hexdigest()
    return Rules((rule_at(f"{LOGINS}used:", Limit(1, LONGEST), lambda _: hashed, 1),))


def _slowed(seconds: float) -> ProblemError:
    wait = max(1, math.ceil(seconds))
    return ProblemError(
        429,
        f"too many failed logins: try again in {wait} s",
        retry_after=wait,
        headers={"Retry-After": str(wait)},
    )
