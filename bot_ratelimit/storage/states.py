"""What a MemoryStorage keeps, by key: bounded, and those who wait are forgotten last."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from typing import Any, Final

from cachetools import Cache, TLRUCache, TTLCache

log = logging.getLogger("bot_ratelimit")

LOG_EVERY: Final = 60.0
_SLACK: Final = 2_000
"""Microseconds that a state is kept after its end; what counts is for the algorithms to say."""


class Kept:
    """A state, when nothing of it counts any more, and how long its cache keeps it (in µs)."""

    __slots__ = ("ends", "held", "state", "until")

    def __init__(self, state: Any, ends: int, until: int, held: bool) -> None:
        self.state = state
        self.ends = ends
        self.until = until
        self.held = held


class _Counts(TTLCache[str, Any]):
    """Counts of users who are not refused; None where there is none, without an exception."""

    def __missing__(self, key: str) -> None:
        return None


class _Held(TLRUCache[str, Any]):
    """Counts that refuse somebody, each until its own end."""

    def __missing__(self, key: str) -> None:
        return None


class States:
    """States of counts, by key.

    Args:
        maxsize: The most keys kept. Beyond it the least recently used one is forgotten; one that
            refuses somebody only when there is no other.
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
        self._held = _Held(maxsize, _end_of, timer=clock)
        self._logged = -LOG_EVERY

    def get(self, key: str) -> Kept | None:
        """What is kept under this key."""
        for cache in self._counts:
            kept: Kept | None = cache[key]
            if kept is not None:
                return kept
        held: Kept | None = self._held[key]
        return held

    def keep(self, key: str, kept: Kept | None, state: Any, ends: int, held: bool) -> None:
        """Keep this state instead of what `get` gave, until it ends.

        Args:
            key: Whose state it is.
            kept: What `get` gave for the key.
            state: The state, which may be the same as before.
            ends: When nothing of it counts any more, in microseconds.
            held: Whether it refuses somebody, and so is forgotten last.
        """
        if kept is not None:
            if kept.held is held and ends <= kept.until:
                kept.state, kept.ends = state, ends  # far cheaper than to put it in again
                return
            self.pop(key)
        else:
            self._make_room()
        if held:
            self._held[key] = Kept(state, ends, ends, held)
            return
        now = round(self._clock() * 1_000_000)
        if ends - now > self._ttl:
            self._ttl = 1 << (ends - now).bit_length()  # in powers of two, so seldom
            self._counts.insert(0, self._cache())
        self._counts[0][key] = Kept(state, ends, now + self._ttl, held)

    def pop(self, key: str) -> Kept | None:
        """Forget this key, and return what was kept."""
        found = None
        for cache in (*self._counts, self._held):
            found = found or cache.pop(key, None)
        return found

    def clear(self) -> None:
        """Forget everything."""
        for cache in (*self._counts, self._held):
            cache.clear()

    def __len__(self) -> int:
        """How many keys are kept; some may be over."""
        return sum(map(len, self._counts)) + len(self._held)

    def _make_room(self) -> None:
        if len(self._counts) > 1:
            newest, *older = self._counts
            self._counts = [newest, *(cache for cache in older if len(cache))]
        if len(self) < self._maxsize:
            return
        cache = next(cache for cache in self._by_worth() if len(cache))
        _, kept = cache.popitem()
        if kept.ends > round(self._clock() * 1_000_000):
            self._tell(kept.held)

    def _by_worth(self) -> Iterator[Cache[str, Any]]:
        yield from reversed(self._counts)
        yield self._held

    def _tell(self, held: bool) -> None:
        now = self._clock()
        if now - self._logged < LOG_EVERY:
            return
        self._logged = now
        log.warning(
            "The rate limiter's memory is full (%d keys): counts that still hold are forgotten%s. "
            "Raise RATE_LIMIT_MEMORY_SIZE (Limiter: memory_size, MemoryStorage: maxsize) above "
            "the number of users in one period",
            self._maxsize,
            ", even of users who are refused or banned" if held else "",
        )

    def _cache(self) -> _Counts:
        return _Counts(self._maxsize, self._ttl / 1_000_000, timer=self._clock)


def _end_of(key: str, kept: Kept, now: float) -> float:
    return (kept.until + _SLACK) / 1_000_000
