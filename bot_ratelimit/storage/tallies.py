"""Tallies: how many decisions of each hour had which outcome; on the server or in this process.

Hours are counted from 1970 in UTC. A field is `<outcome> <rule>`, for example `refused ai`; of a
request that the bot sent, `<outcome> <method>`. Two hours are also kept by minute.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Final, NamedTuple, Protocol

KEPT_HOURS: Final = 48
MAX_USERS: Final = 1_000
"""How many refused users are kept for each hour; those refused least often are dropped."""


class Tally(NamedTuple):
    """What one process has counted in one hour since it last wrote."""

    hour: int
    counts: Mapping[str, int]
    """Decisions by field."""
    refused: Mapping[int, int]
    """Refusals by user."""
    minutes: Mapping[str, int]
    """The same as `counts`, by minute of the hour: `59 refused ai`."""


class Tallies(Protocol):
    """Adds up the tallies of all processes, and keeps them for 48 hours.

    All methods raise StorageError if the storage is unreachable, and ConfigError if it refuses.
    """

    async def add(self, tally: Tally, writer: str, number: int, *, timeout: float) -> None:
        """Add a tally once.

        Args:
            tally: What to add.
            writer: The name of the process.
            number: The number of this write. A repeated write has the same number, so that a write
                whose answer was lost does not count twice.
            timeout: Seconds.
        """
        ...

    async def counts(self, hour: int, *, timeout: float) -> Mapping[str, int]:
        """Return the decisions of an hour by field."""
        ...

    async def minutes(self, hour: int, *, timeout: float) -> Mapping[str, int]:
        """Return the decisions of an hour by minute and field; of the last two hours."""
        ...

    async def refused(self, hour: int, *, timeout: float) -> Mapping[int, int]:
        """Return the refusals of an hour by user."""
        ...

    async def refused_of(self, user: int, hour: int, *, timeout: float) -> int | None:
        """Return the refusals of one user; None if the user may have been dropped."""
        ...


class MemoryTallies(Tallies):
    """Tallies of this process; see `Tallies`."""

    def __init__(self) -> None:
        self._counts: dict[int, Counter[str]] = {}
        self._minutes: dict[int, Counter[str]] = {}
        self._refused: dict[int, Counter[int]] = {}

    async def add(self, tally: Tally, writer: str, number: int, *, timeout: float) -> None:
        self._counts.setdefault(tally.hour, Counter()).update(tally.counts)
        self._minutes.setdefault(tally.hour, Counter()).update(tally.minutes)
        refused = self._refused.setdefault(tally.hour, Counter())
        refused.update(tally.refused)
        self._refused[tally.hour] = Counter(dict(refused.most_common(MAX_USERS)))
        for hours, kept in ((self._counts, KEPT_HOURS), (self._refused, KEPT_HOURS),
                            (self._minutes, 2)):  # fmt: skip
            for old in [hour for hour in hours if hour <= tally.hour - kept]:
                del hours[old]

    async def counts(self, hour: int, *, timeout: float) -> Mapping[str, int]:
        return self._counts.get(hour, {})

    async def minutes(self, hour: int, *, timeout: float) -> Mapping[str, int]:
        """See `Tallies.minutes`."""
        return self._minutes.get(hour, {})

    async def refused(self, hour: int, *, timeout: float) -> Mapping[int, int]:
        return self._refused.get(hour, {})

    async def refused_of(self, user: int, hour: int, *, timeout: float) -> int | None:
        refused = self._refused.get(hour, Counter())
        return refused.get(user, None if len(refused) >= MAX_USERS else 0)
