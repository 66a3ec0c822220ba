"""StateCache: the bounded caches of a MemoryStorage; counts of refused users are evicted late."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from enum import IntEnum
from typing import Any, Final

from cachetools import Cache, TLRUCache, TTLCache

log = logging.getLogger("bot_ratelimit")

LOG_EVERY: Final = 60.0
_SLACK: Final = 0.002
"""Seconds that a state stays cached after its end; the algorithms decide if it counts."""


class Retention(IntEnum):
    """How important it is to keep a state: states with a lower value are evicted first."""

    NORMAL = 0
    REFUSED = 1
    BANNED = 2


class Entry:
    """A state and its two times in microseconds.

    After `ends` nothing in the state counts any more. The cache keeps the entry until `until`.
    """

    __slots__ = ("cache", "ends", "retention", "state", "until")

    def __init__(
        self, cache: Cache[str, Any], state: Any, ends: int, until: int, retention: Retention
    ) -> None:
        self.cache = cache
        self.state = state
        self.ends = ends
        self.until = until
        self.retention = retention


class _Counts(TTLCache[str, Any]):
    """Counts of users who are not refused; a missing key gives None instead of a KeyError."""

    def __init__(
        self, index: dict[str, Entry], maxsize: int, ttl: float, clock: Callable[[], float]
    ) -> None:
        super().__init__(maxsize, ttl, timer=clock)
        self._index = index

    def __missing__(self, key: str) -> None:
        return None

    def expire(self, time: float | None = None) -> list[tuple[str, Any]]:
        return _forget(self._index, super().expire(time))


class _UntilEnd(TLRUCache[str, Any]):
    """Counts of refused users, or bans. Each entry expires at its own end."""

    def __init__(self, index: dict[str, Entry], maxsize: int, clock: Callable[[], float]) -> None:
        super().__init__(maxsize, _end_of, timer=clock)
        self._index = index

    def __missing__(self, key: str) -> None:
        return None

    def expire(self, time: float | None = None) -> list[tuple[str, Any]]:
        return _forget(self._index, super().expire(time))


def _forget(index: dict[str, Entry], expired: list[tuple[str, Any]]) -> list[tuple[str, Any]]:
    for key, entry in expired:
        if index.get(key) is entry:  # not of a newer entry in another cache
            del index[key]
    return expired


class StateCache:
    """The states of counts, by key.

    Args:
        maxsize: The maximum number of keys. Above it the least recently used count is evicted: a
            count that refuses a user only if there is no other, and a ban only if there are only
            bans.
        ttl: How long a state is kept at first, in microseconds. It grows with the longest limit.
        clock: Returns seconds from any starting point.
    """

    def __init__(self, maxsize: int, ttl: int, clock: Callable[[], float]) -> None:
        self._maxsize = maxsize
        self._clock = clock
        self._ttl = ttl
        # All entries, since looking through the caches for a key would take most of a decision's
        # time.
        self._index: dict[str, Entry] = {}
        # Newest first. All entries of a TTLCache have the same TTL, so a longer TTL needs a new
        # cache. States stay in the old one until they are used or expire: copying them would be
        # slow.
        self._counts = [self._new_counts()]
        self._refused = _UntilEnd(self._index, maxsize, clock)
        self._bans: _UntilEnd | None = None  # created on first use: most bots ban nobody
        self._logged: dict[Retention, float] = {}

    def get(self, key: str) -> Entry | None:
        """Return the entry of this key, or None."""
        entry = self._index.get(key)
        # Reading it from its cache marks it as used, and gives None if it has expired.
        return None if entry is None else entry.cache[key]

    def put(
        self, key: str, entry: Entry | None, state: Any, now: int, ends: int, retention: Retention
    ) -> None:
        """Store a state until it ends, in place of the entry that `get` returned.

        Args:
            key: The key of the state.
            entry: What `get` returned for the key.
            state: The state, which may be the same object as before.
            now: The time, in microseconds.
            ends: When nothing in it counts any more, in microseconds.
            retention: How important it is to keep the state.
        """
        if entry is not None:
            if entry.retention is retention and ends <= entry.until:
                entry.state, entry.ends = state, ends  # much cheaper than storing a new entry
                return
            self.pop(key)
        else:
            self._make_room()
        until = ends
        cache: _Counts | _UntilEnd
        if retention:
            cache = self._cache_for(retention)
        else:
            if ends - now > self._ttl:
                self._ttl = 1 << (ends - now).bit_length()  # powers of two, so that this is rare
                self._counts.insert(0, self._new_counts())
            cache, until = self._counts[0], now + self._ttl
        cache[key] = self._index[key] = Entry(cache, state, ends, until, retention)

    def pop(self, key: str) -> Entry | None:
        """Remove this key and return its entry, or None."""
        entry = self._index.pop(key, None)
        return None if entry is None else entry.cache.pop(key, None)

    def __iter__(self) -> Iterator[str]:
        """All keys."""
        return iter(self._index)

    def clear(self) -> None:
        """Remove all entries."""
        for cache in self._all_caches():
            cache.clear()
        self._index.clear()

    def __len__(self) -> int:
        """The number of keys; some of them may have ended already."""
        for cache in self._all_caches():
            cache.expire()
        return len(self._index)

    def _make_room(self) -> None:
        if len(self._counts) > 1:
            newest, *older = self._counts
            self._counts = [newest, *(cache for cache in older if len(cache))]
        if len(self._index) < self._maxsize or len(self) < self._maxsize:
            return
        for cache in self._all_caches():
            try:
                key, entry = cache.popitem()
            except KeyError:  # it is empty, or its last entry has expired just now
                continue
            self._index.pop(key, None)
            if entry.ends > round(self._clock() * 1_000_000):
                self._warn(entry.retention)
            return

    def _all_caches(self) -> Iterator[_Counts | _UntilEnd]:
        """All caches, in the order of eviction."""
        yield from reversed(self._counts)
        yield self._refused
        if self._bans is not None:
            yield self._bans

    def _cache_for(self, retention: Retention) -> _UntilEnd:
        if retention is Retention.REFUSED:
            return self._refused
        if self._bans is None:
            self._bans = _UntilEnd(self._index, self._maxsize, self._clock)
        return self._bans

    def _warn(self, retention: Retention) -> None:
        now = self._clock()
        if now - self._logged.get(retention, -LOG_EVERY) < LOG_EVERY:
            return
        self._logged[retention] = now
        log.warning(
            "The rate limiter's memory is full (%d keys): counts that still hold are forgotten%s. "
            "Raise RATE_LIMIT_MEMORY_SIZE (Limiter: memory_size, MemoryStorage: maxsize) above "
            "the number of users in one period",
            self._maxsize,
            _WHAT_IS_LOST[retention],
        )

    def _new_counts(self) -> _Counts:
        return _Counts(self._index, self._maxsize, self._ttl / 1_000_000 + _SLACK, self._clock)


_WHAT_IS_LOST: Final = {
    Retention.NORMAL: "",
    Retention.REFUSED: ", even of users who are refused",
    Retention.BANNED: ", even bans",
}


def _end_of(key: str, entry: Entry, now: float) -> float:
    # Always after now: the cache would not store an entry that has expired, but the index would.
    return max(entry.until / 1_000_000, now) + _SLACK
