"""What a MemoryStorage keeps, by key: bounded; refused users are forgotten late, bans last."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from enum import IntEnum
from typing import Any, Final

from cachetools import Cache, TLRUCache, TTLCache

log = logging.getLogger("bot_ratelimit")

LOG_EVERY: Final = 60.0
_SLACK: Final = 2_000
"""Microseconds that a state is kept after its end; what counts is for the algorithms to say."""


class Held(IntEnum):
    """Why a state is not to be forgotten: the higher, the later it is."""

    NOT = 0
    REFUSED = 1
    BANNED = 2


class Kept:
    """A state, when nothing of it counts any more, and how long its cache keeps it (in µs)."""

    __slots__ = ("ends", "held", "state", "until")

    def __init__(self, state: Any, ends: int, until: int, held: Held) -> None:
        self.state = state
        self.ends = ends
        self.until = until
        self.held = held


class _Counts(TTLCache[str, Any]):
    """Counts of users who are not refused; None where there is none, without an exception."""

    def __missing__(self, key: str) -> None:
        return None


class _Waits(TLRUCache[str, Any]):
    """Counts that refuse somebody, or bans, each until its own end."""

    def __missing__(self, key: str) -> None:
        return None


class StateCache:
    """The states of counts, by key.

    Args:
        maxsize: The most keys kept. Beyond it the least recently used one is forgotten; one that
            refuses somebody only when there is no other, and a ban only when there are only bans.
        ttl: Microseconds; for how long a state is kept at first. It grows with the longest limit.
        clock: Seconds from any starting point.
    """

    def __init__(self, maxsize: int, ttl: int, clock: Callable[[], float]) -> None:
        self._maxsize = maxsize
        self._clock = clock
        self._ttl = ttl
        # Newest first. A TTLCache has one TTL for all: for a longer one there is a new cache, and
        # the states of the old one stay there until they are used or over. Copying would take long.
        self._counts = [self._cache()]
        self._refused = _Waits(maxsize, _end_of, timer=clock)
        self._bans: _Waits | None = None  # most bots ban nobody, and so need not look there
        self._logged: dict[Held, float] = {}

    def get(self, key: str) -> Kept | None:
        """What is kept under this key."""
        for cache in self._counts:
            kept: Kept | None = cache[key]
            if kept is not None:
                return kept
        kept = self._refused[key]
        return self._bans[key] if kept is None and self._bans is not None else kept

    def keep(self, key: str, kept: Kept | None, state: Any, ends: int, held: Held) -> None:
        """Keep this state instead of what `get` gave, until it ends.

        Args:
            key: Whose state it is.
            kept: What `get` gave for the key.
            state: The state, which may be the same as before.
            ends: When nothing of it counts any more, in microseconds.
            held: Whom it refuses, and so when it is forgotten.
        """
        if kept is not None:
            if kept.held is held and ends <= kept.until:
                kept.state, kept.ends = state, ends  # far cheaper than to put it in again
                return
            self.pop(key)
        else:
            self._make_room()
        if held:
            self._waits(held)[key] = Kept(state, ends, ends, held)
            return
        now = round(self._clock() * 1_000_000)
        if ends - now > self._ttl:
            self._ttl = 1 << (ends - now).bit_length()  # in powers of two, so seldom
            self._counts.insert(0, self._cache())
        self._counts[0][key] = Kept(state, ends, now + self._ttl, held)

    def pop(self, key: str) -> Kept | None:
        """Forget this key, and return what was kept."""
        found = None
        for cache in self._caches():
            found = found or cache.pop(key, None)
        return found

    def clear(self) -> None:
        """Forget everything."""
        for cache in self._caches():
            cache.clear()

    def __len__(self) -> int:
        """How many keys are kept; some may be over."""
        return sum(map(len, self._caches()))

    def _make_room(self) -> None:
        if len(self._counts) > 1:
            newest, *older = self._counts
            self._counts = [newest, *(cache for cache in older if len(cache))]
        if len(self) < self._maxsize:
            return
        cache = next(cache for cache in self._caches() if len(cache))
        _, kept = cache.popitem()
        if kept.ends > round(self._clock() * 1_000_000):
            self._tell(kept.held)

    def _caches(self) -> Iterator[Cache[str, Any]]:
        """All of them; what is worth most comes last."""
        yield from reversed(self._counts)
        yield self._refused
        if self._bans is not None:
            yield self._bans

    def _waits(self, held: Held) -> _Waits:
        if held is Held.REFUSED:
            return self._refused
        if self._bans is None:
            self._bans = _Waits(self._maxsize, _end_of, timer=self._clock)
        return self._bans

    def _tell(self, held: Held) -> None:
        now = self._clock()
        if now - self._logged.get(held, -LOG_EVERY) < LOG_EVERY:
            return
        self._logged[held] = now
        log.warning(
            "The rate limiter's memory is full (%d keys): counts that still hold are forgotten%s. "
            "Raise RATE_LIMIT_MEMORY_SIZE (Limiter: memory_size, MemoryStorage: maxsize) above "
            "the number of users in one period",
            self._maxsize,
            _WORSE[held],
        )

    def _cache(self) -> _Counts:
        return _Counts(self._maxsize, self._ttl / 1_000_000, timer=self._clock)


_WORSE: Final = {
    Held.NOT: "",
    Held.REFUSED: ", even of users who are refused",
    Held.BANNED: ", even bans",
}


def _end_of(key: str, kept: Kept, now: float) -> float:
    return (kept.until + _SLACK) / 1_000_000
