"""StateCache: the bounded cache of a MemoryStorage; counts of refused users are evicted late."""

from __future__ import annotations

import logging
from collections import OrderedDict
from collections.abc import Callable
from heapq import heapify, heappop, heappush
from typing import Any, Final

from cachetools import Cache

from bot_ratelimit.storage.loops import Seldom

log = logging.getLogger("bot_ratelimit")

_SLACK_US: Final = 2_000
"""How long a state is kept after its end; the algorithms decide whether it counts."""


NORMAL, REFUSED, BANNED = range(3)
"""How important it is to keep a state: states with a lower value are evicted first."""


class Entry:
    """A state, and when nothing in it counts any more, in microseconds."""

    __slots__ = ("ends", "kept", "retention", "state")

    def __init__(self, state: Any, ends: int, retention: int) -> None:
        self.state = state
        self.ends = ends
        self.retention = retention
        self.kept = True


class StateCache(Cache[str, "Entry | None"]):
    """The states of counts, by key; a missing key gives None.

    A state that has ended is removed when a new key is stored.

    Args:
        maxsize: The maximum number of keys. Above it the least recently used count is evicted: a
            count that refuses a user only if there is no other, and a ban only if there are only
            bans.
        clock: Returns microseconds from any starting point.
    """

    def __init__(self, maxsize: int, clock: Callable[[], int]) -> None:
        super().__init__(maxsize)
        self._clock = clock
        # The keys of each retention, the least recently used first.
        self._used: tuple[OrderedDict[str, None], ...] = tuple(OrderedDict() for _ in range(3))
        # When to look whether a key has ended: one item for each new key. Its end may move later.
        self._ends: list[tuple[int, str]] = []
        self._seldom = Seldom(clock=lambda: clock() / 1e6)

    def __missing__(self, key: str) -> None:
        return None

    def put(self, key: str, entry: Entry | None, state: Any, ends: int, retention: int) -> None:
        """Store a state, in place of the entry that was found under this key."""
        if entry is None or not entry.kept:  # new, or evicted just now
            self.expire()
            self[key] = Entry(state, ends, retention)
            heappush(self._ends, (ends + _SLACK_US, key))
            self._used[retention][key] = None
            return
        entry.state, entry.ends = state, ends
        if entry.retention == retention:
            self._used[retention].move_to_end(key)
        else:
            del self._used[entry.retention][key]
            entry.retention = retention
            self._used[retention][key] = None

    def __delitem__(self, key: str) -> None:
        """Remove this key."""
        entry = self[key]
        super().__delitem__(key)
        if entry is not None:
            entry.kept = False
            del self._used[entry.retention][key]

    def expire(self) -> None:
        """Remove the states that have ended."""
        now = self._clock()
        while self._ends and self._ends[0][0] <= now:
            _, key = heappop(self._ends)
            entry = self[key]
            if entry is None:  # it was reset
                continue
            if entry.ends + _SLACK_US > now:
                heappush(self._ends, (entry.ends + _SLACK_US, key))
            else:
                del self[key]
        if len(self._ends) > 2 * self.maxsize:  # keys that were reset and counted again
            self._ends = [(entry.ends + _SLACK_US, key) for key, entry in self.items() if entry]
            heapify(self._ends)

    def popitem(self) -> tuple[str, Entry | None]:
        """Evict the least recently used count, passing over refused users and bans."""
        retention = next(each for each in range(3) if self._used[each])
        key = next(iter(self._used[retention]))
        entry = self.pop(key)
        if entry is not None and entry.ends > self._clock() and self._seldom():
            log.warning(
                "The rate limiter's memory is full (%d keys): counts that still hold are "
                "forgotten, those of refused users last. Raise RATE_LIMIT_MEMORY_SIZE (Limiter: "
                "memory_size, MemoryStorage: maxsize) above the number of users in one period",
                self.maxsize,
            )
        return key, entry

    def clear(self) -> None:
        """Remove all states."""
        for key in list(self):
            del self[key]
        self._ends.clear()
