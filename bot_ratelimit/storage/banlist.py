"""BanList: who is banned, until when and why; on the server or in this process."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Mapping
from datetime import datetime, timedelta
from typing import Final, NamedTuple, Protocol, TypeAlias

from bot_ratelimit.rules.rule import Subject

MAX_BANS: Final = 100_000
"""Entries of the list."""
MAX_LISTED: Final = 99_000
"""Entries beyond which bans of a `Penalty` hold, but are not listed."""

BanTarget: TypeAlias = "tuple[int | None, int | None, int | None]"
"""User, chat and bot of a ban by hand."""


class Ban(NamedTuple):
    """A ban in the list of bans, as `Limiter.ban` and `Limiter.bans` return it.

    ::

        for ban in await limiter.bans():
            print(ban.subject.user, ban.until, ban.reason, ban.by)

    Attributes:
        subject: Who is banned.
        since: When the ban began, in UTC.
        until: When it ends, in UTC; None if it is permanent.
        reason: Why, as it was given to `Limiter.ban`; empty unless given.
        by: Who imposed it: what was given to `Limiter.ban`, or `"penalty"`.
        key: The Redis key of a ban by a `Penalty`; empty for a ban by hand.
    """

    subject: Subject
    since: datetime
    until: datetime | None
    reason: str
    by: str
    key: str = ""


class BanList(Protocol):
    """Keeps the list of bans.

    All methods raise StorageError if the storage is unreachable.
    """

    current: Mapping[BanTarget, float] | None
    """The ends of the bans by hand, if this storage always knows them; otherwise None."""
    clock: Callable[[], float]
    """The clock of these ends."""

    async def put(self, ban: Ban, seconds: float, *, timeout: float) -> bool:
        """Add a ban that ends in `seconds`; return False if the list is full."""
        ...

    async def drop(self, subject: Subject, *, by_hand: bool = True, timeout: float) -> list[Ban]:
        """Remove the bans of a subject, and return those that were still in force.

        Without `by_hand`, only one by a `Penalty`.
        """
        ...

    async def load(
        self, version: str, *, timeout: float
    ) -> tuple[str, dict[BanTarget, float]] | None:
        """Return the version and the ends of the bans by hand; None if they are unchanged."""
        ...

    async def page(self, offset: int, limit: int, *, timeout: float) -> list[Ban]:
        """Return a page of the current bans, those that end first at the beginning."""
        ...

    async def find(self, subjects: Iterable[Subject], *, timeout: float) -> list[Ban]:
        """Return the current bans of exactly these subjects, in any order."""
        ...


class MemoryBanList(BanList):
    """The list in this process, by this clock."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self.clock = clock
        self.current: dict[BanTarget, float] = {}
        self._bans: dict[str, tuple[float, Ban]] = {}
        self._next = math.inf  # when the next one ends

    async def put(self, ban: Ban, seconds: float, *, timeout: float) -> bool:
        self._prune()
        member = member_of(ban.subject, ban.key)
        if len(self._bans) >= room_for(ban) and member not in self._bans:
            return False
        self._next = min(self._next, self.clock() + seconds)
        until = None if math.isinf(seconds) else ban.since + timedelta(seconds=seconds)
        self._bans[member] = self.clock() + seconds, ban._replace(until=until)
        if not ban.key:
            self.current[target_of(ban.subject)] = self.clock() + seconds
        return True

    async def drop(self, subject: Subject, *, by_hand: bool = True, timeout: float) -> list[Ban]:
        self._prune()
        members = members_of([subject], by_hand)
        dropped = [self._bans.pop(member)[1] for member in members if member in self._bans]
        for ban in dropped:
            if not ban.key:
                self.current.pop(target_of(ban.subject), None)
        return dropped

    async def load(self, version: str, *, timeout: float) -> None:
        return None

    async def page(self, offset: int, limit: int, *, timeout: float) -> list[Ban]:
        self._prune()
        ordered = sorted(self._bans.items(), key=lambda item: (item[1][0], item[0]))
        return [ban for _, (_, ban) in ordered[offset : offset + limit]]

    async def find(self, subjects: Iterable[Subject], *, timeout: float) -> list[Ban]:
        self._prune()
        return [self._bans[each][1] for each in members_of(subjects) if each in self._bans]

    def _prune(self) -> None:
        now = self.clock()
        if now < self._next:
            return
        for member in [member for member, (end, _) in self._bans.items() if end <= now]:
            _, ban = self._bans.pop(member)
            if not ban.key:
                self.current.pop(target_of(ban.subject), None)
        self._next = min((end for end, _ in self._bans.values()), default=math.inf)


def member_of(subject: Subject, key: str) -> str:
    """The name of an entry: `hand:42::::`, or `penalty:…` for a ban by a penalty."""
    return ":".join(
        ["penalty" if key else "hand", *("" if part is None else str(part) for part in subject)]
    )


def members_of(subjects: Iterable[Subject], by_hand: bool = True) -> list[str]:
    """The names of the entries that these subjects may have."""
    kinds = ("penalty", "") if by_hand else ("penalty",)
    return [member_of(subject, kind) for subject in subjects for kind in kinds]


def room_for(ban: Ban) -> int:
    """How many entries there may be besides this one."""
    return MAX_LISTED if ban.key else MAX_BANS


def target_of(subject: Subject) -> BanTarget:
    """What a ban by hand of this subject is known by."""
    return subject.user, subject.chat, subject.bot
