"""Tallies: how many decisions of each hour had which outcome; on the server or in this process.

Hours are counted from 1970 in UTC. A field is `<outcome> <rule>`, for example `refused ai`; of a
request that the bot sent, `<outcome> <method>`. Two hours are also kept by minute.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final, Protocol

KEPT_HOURS: Final = 48
MAX_USERS: Final = 1_000
"""How many refused users are kept for each hour; those refused least often are dropped."""


@dataclass(slots=True)
class Tally:
    """What one process has counted in one hour since it last wrote."""

    hour: int
    counts: Counter[str] = field(default_factory=Counter)
    """Decisions by field."""
    refused: Counter[int] = field(default_factory=Counter)
    """Refusals by user."""
    minutes: Counter[str] = field(default_factory=Counter)
    """The same as `counts`, by minute of the hour: `59 refused ai`."""


class Tallies(Protocol):
    """Adds up the tallies of all processes, and keeps them for 48 hours.

    All methods raise StorageError if the storage is unreachable, and ConfigError if it refuses.
    """

    async def add(self, tally: Tally, writer: str, number: int, *, timeout: float) -> None:
        """Add a tally once.

        `writer` is the name of the process. A repeated write has the same number, so that a write
        whose answer was lost does not count twice.
        """
        ...

    async def counts(
        self, hour: int, *, by_minute: bool = False, timeout: float
    ) -> Mapping[str, int]:
        """Return the decisions of an hour by field; of the last two hours also by minute."""
        ...

    async def refused(self, hour: int, *, timeout: float) -> Mapping[int, int]:
        """Return the refusals of an hour by user."""
        ...


class MemoryTallies(Tallies):
    """Tallies of this process; see `Tallies`."""

    def __init__(self) -> None:
        self._hours: dict[int, Tally] = {}

    async def add(self, tally: Tally, writer: str, number: int, *, timeout: float) -> None:
        total = self._hour(tally.hour)
        total.counts.update(tally.counts)
        total.minutes.update(tally.minutes)
        total.refused = Counter(dict((total.refused + tally.refused).most_common(MAX_USERS)))
        self._hours[tally.hour] = total
        for hour, each in list(self._hours.items()):
            if hour <= tally.hour - KEPT_HOURS:
                del self._hours[hour]
            elif hour <= tally.hour - 2:
                each.minutes.clear()

    async def counts(
        self, hour: int, *, by_minute: bool = False, timeout: float
    ) -> Mapping[str, int]:
        found = self._hour(hour)
        return found.minutes if by_minute else found.counts

    async def refused(self, hour: int, *, timeout: float) -> Mapping[int, int]:
        return self._hour(hour).refused

    def _hour(self, hour: int) -> Tally:
        return self._hours.get(hour) or Tally(hour)
