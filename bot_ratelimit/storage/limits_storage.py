"""LimitsStorage: counts in Memcached or MongoDB, through the library `limits`; extra `stores`."""

from __future__ import annotations

import asyncio
import hashlib
import time
from collections.abc import Hashable, Sequence
from math import ceil
from typing import Any, Final
from urllib.parse import urlsplit

from bot_ratelimit.algorithms.verdict import Verdict
from bot_ratelimit.errors import ConfigError, StorageError
from bot_ratelimit.rules.limit import Algorithm
from bot_ratelimit.storage.base import ONCE_MS, Ask, Count, Op, Storage
from bot_ratelimit.storage.loops import PerLoop

SCHEMES: Final = ("memcached", "mongodb", "mongodb+srv")
"""The URLs that it takes."""

_LONGEST: Final = 30 * 86_400  # Memcached takes more seconds for a date
_LONGEST_KEY: Final = 200  # Memcached takes 250 bytes, and `limits` adds some
_SHORTEST_WAIT: Final = 100_000  # microseconds; the clocks of bots and store differ
_SECOND: Final = 1_000_000


class LimitsStorage(Storage):
    """Counts in Memcached or MongoDB, with the asyncio storages of the library `limits`.

    ::

        RateLimitMiddleware("5/10s", limiter=Limiter(LimitsStorage("memcached://10.0.0.5:11211")))

    It can do fixed windows only, of whole seconds (a part of a second counts as one), 30 days at
    most. A rule that needs more is not counted: the log has an error, and `on_error` answers.
    Refunds, slots, bans, live limits and statistics raise a ConfigError. Several rules are not
    decided atomically: at the same moment another instance may use up a limit in between, and then
    the hit is refused although some of its rules were charged.
    `docs/storages.md` compares the storages.

    Args:
        url: `memcached://host:11211,host2:11211`, `mongodb://…` or `mongodb+srv://…`.
        **options: Options of the storage of `limits`.

    Raises:
        ConfigError: The URL has another scheme.
        ModuleNotFoundError: `limits`, or the driver that it needs, is not installed.
    """

    def __init__(self, url: str, **options: Any) -> None:
        parts = urlsplit(url) if isinstance(url, str) else urlsplit("")
        if parts.scheme not in SCHEMES:
            expected = ", ".join(f"{scheme}://" for scheme in SCHEMES)
            raise ConfigError(
                f"LimitsStorage: unknown scheme; expected one of {expected}, such as "
                "memcached://localhost:11211; for memory use MemoryStorage(), for Redis a redis:// "
                "URL"
            )
        self.source = parts.scheme.partition("+")[0]
        self._where = parts.netloc.rpartition("@")[2]
        self._url, self._options = url, options
        self._made()  # an error now, not at the first hit
        self._stores = PerLoop(self._made)  # connections belong to the loop that opened them

    @property
    def key_space(self) -> Hashable:
        return self.source, self._where

    def server(self, counts: Sequence[Count]) -> str:
        return self._where

    async def ask(self, ask: Ask, *, timeout: float) -> list[Verdict]:
        for count in () if ask.op is Op.RESET else ask.counts:
            _check(count, self.source)
        if ask.op is Op.REFUND:
            raise ConfigError(f"{self.source} cannot give back what was charged: use Redis")
        from limits.errors import StorageError as LimitsError

        try:
            async with asyncio.timeout(timeout):
                return await self._answer(ask)
        except TimeoutError:
            kind, reason = "timeout", f"no answer from {self._where} within {timeout:g} s"
        except (LimitsError, OSError) as error:
            cause = getattr(error, "storage_error", error)
            text = " ".join(str(cause).split())
            kind, reason = "connection", f"{self._where}: {type(cause).__name__}: {text}"
        raise StorageError(reason, kind=kind)

    async def close(self) -> None:
        """Forget the connections."""
        self._stores = PerLoop(self._made)

    def _made(self) -> Any:
        try:
            from limits.storage import storage_from_string
        except ModuleNotFoundError as missing:
            raise ModuleNotFoundError(
                "LimitsStorage needs limits: pip install 'bot_ratelimit[stores]'", name=missing.name
            ) from None
        return storage_from_string(f"async+{self._url}", wrap_exceptions=True, **self._options)

    async def _answer(self, ask: Ask) -> list[Verdict]:
        counts, op = ask.counts, ask.op
        if op is Op.CHARGE:
            return [_verdict(each, *await self._add(each, each.cost), 1) for each in counts]
        if op is Op.HIT and ask.once is not None:
            if await self._stores.get().incr(_stored(ask.once), ONCE_MS // 1_000) > 1:
                # Nothing is charged: the answer is whether the limit was exceeded.
                return [_verdict(each, *await self._look(each), 0) for each in counts]
        elif op is Op.HIT and len(counts) == 1 and counts[0].cost == 1 and not counts[0].shadow:
            used, left = await self._add(counts[0], 1)
            return [_verdict(counts[0], used, left, 0)]
        looked = [await self._look(each) for each in counts]
        if op is Op.RESET:
            for each in counts:
                await self._stores.get().clear(_stored(each.key))
        if op is not Op.HIT:
            return [
                _verdict(each, used, left, each.cost)
                for each, (used, left) in zip(counts, looked, strict=True)
            ]
        return await self._hit(counts, looked)

    async def _hit(
        self, counts: Sequence[Count], looked: Sequence[tuple[int, int]]
    ) -> list[Verdict]:
        """Charge all counts, unless one of them refuses; a full window still counts attempts."""
        pairs = list(zip(counts, looked, strict=True))
        fits = [used + each.cost <= each.limit.amount for each, (used, _) in pairs]
        is_refused = any(
            not fit and not each.shadow for each, fit in zip(counts, fits, strict=True)
        )
        verdicts = []
        for (each, (used, left)), fit in zip(pairs, fits, strict=True):
            cost = each.cost
            if used >= each.limit.amount or (fit and not is_refused):
                used, left = await self._add(each, cost if fit else 1)
                cost = 0
            verdicts.append(_verdict(each, used, left, cost))
        return verdicts

    async def _add(self, count: Count, cost: int) -> tuple[int, int]:
        """Charge; return what is used then, and how many microseconds the window has left."""
        key = _stored(count.key)
        used = await self._stores.get().incr(key, _seconds(count), amount=cost)
        return used, await self._left(key)

    async def _look(self, count: Count) -> tuple[int, int]:
        key = _stored(count.key)
        used = await self._stores.get().get(key)
        return used, await self._left(key) if used else 0

    async def _left(self, key: str) -> int:
        ends: float = await self._stores.get().get_expiry(key)
        return max(0, round((ends - time.time()) * _SECOND))


def _check(count: Count, source: str) -> None:
    """Raise ConfigError if the rule needs more than a fixed window."""
    limit, wrong = count.limit, ""
    if count.penalty is not None:
        wrong = "no penalties"
    elif limit.algorithm is not Algorithm.FIXED_WINDOW or limit.zone:
        wrong = "fixed windows only"
    elif _seconds(count) > _LONGEST:
        wrong = "windows of 30 days at most"
    if wrong:
        raise ConfigError(f"{str(limit)!r}: {source} has {wrong}: use Redis for this rule")


def _seconds(count: Count) -> int:
    return ceil(count.limit.period)


def _verdict(count: Count, used: int, left: int, cost: int) -> Verdict:
    """What a hit of this cost gets; with a cost of 0, what one got that is counted in `used`."""
    is_allowed = used + cost <= count.limit.amount
    wait = 0 if is_allowed else max(left, _SHORTEST_WAIT)
    return Verdict(wait, max(0, count.limit.amount - used), left)


def _stored(key: str) -> str:
    """The key as Memcached takes it: short, without spaces."""
    if len(key) <= _LONGEST_KEY and key.isascii() and key.isprintable() and " " not in key:
        return key
    return f"bot_ratelimit:{hashlib.sha256(key.encode()).hexdigest()}"
