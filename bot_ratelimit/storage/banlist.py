"""BanList: who is banned, until when and why; on the server or in this process."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Iterable, Mapping
from datetime import UTC, datetime, timedelta
from typing import Any, Final, NamedTuple, Protocol, TypeAlias
from weakref import WeakKeyDictionary

from bot_ratelimit.errors import ConfigError
from bot_ratelimit.rules.described import fields_described
from bot_ratelimit.rules.rule import Subject
from bot_ratelimit.storage.base import Storage
from bot_ratelimit.storage.memory import MemoryStorage
from bot_ratelimit.storage.redis.scripts import Executes, Script

MAX_BANS: Final = 100_000
"""Entries of the list; beyond them bans of a `Penalty` hold, but are not listed."""

_SCRIPT: Final = Script("bans")

BanTarget: TypeAlias = "tuple[int | None, int | None, int | None]"
"""User, chat and bot of a ban by hand."""


@fields_described
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

    @property
    def current(self) -> Mapping[BanTarget, float] | None:
        """The ends of the bans by hand, if this storage always knows them; otherwise None."""
        ...

    @property
    def clock(self) -> Callable[[], float]:
        """The clock of these ends."""
        ...

    async def put(self, ban: Ban, seconds: float, *, timeout: float) -> bool:
        """Add a ban that ends in `seconds`; return False if the list is full."""
        ...

    async def drop(self, subject: Subject, *, by_hand: bool = True, timeout: float) -> list[Ban]:
        """Remove the bans of a subject, and return those that were still in force.

        Args:
            subject: Who was banned.
            by_hand: Whether a ban by hand is removed too, or only one by a `Penalty`.
            timeout: Seconds.
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


class RedisBanList:
    """The list on a Redis server, as an index, so that no search for keys is needed.

    It is stored in three keys, `<prefix>:ratelimit:{bans}:ends`, `...:details` and `...:hand`. The
    braces keep them in one slot of a cluster.
    """

    def __init__(self, server: Executes, prefix: str) -> None:
        self.current: Mapping[BanTarget, float] | None = None
        self.clock: Callable[[], float] = time.monotonic
        self._server = server
        self._keys = [f"{prefix}:ratelimit:{{bans}}:{part}" for part in ("ends", "details", "hand")]

    async def put(self, ban: Ban, seconds: float, *, timeout: float) -> bool:
        """See `BanList.put`."""
        length: int | str = "inf" if math.isinf(seconds) else max(1, round(seconds * 1_000))
        details = json.dumps({"reason": ban.reason, "by": ban.by, "key": ban.key})
        by_hand = int(not ban.key)
        return bool(
            await self._run(
                *("put", _member(ban.subject, ban.key), length, details, by_hand, MAX_BANS),
                timeout=timeout,
            )
        )

    async def drop(self, subject: Subject, *, by_hand: bool = True, timeout: float) -> list[Ban]:
        """See `BanList.drop`."""
        members = _members(subject, by_hand)
        dropped = await self._run("drop", *members, timeout=timeout)
        return [_ban(subject, details, None) for details in dropped]

    async def load(
        self, version: str, *, timeout: float
    ) -> tuple[str, dict[BanTarget, float]] | None:
        """See `BanList.load`. One command that reads one value, unless the list has changed."""
        command = [b"HGET", self._keys[2].encode(), b"version"]
        found = await self._server.execute(command, key=self._keys[2], timeout=timeout)
        if _text(found or b"") == version:
            return None
        if not found:  # also if scripts are refused
            return "", {}
        asked = self.clock()
        now, loaded, *rest = map(_text, await self._run("load", timeout=timeout))
        ends = {}
        for member, end in zip(rest[::2], rest[1::2], strict=True):
            subject = _subject(member)
            left = float(end) / 1_000 - float(now) / 1_000
            ends[subject.user, subject.chat, subject.bot] = asked + left
        return loaded, ends

    async def page(self, offset: int, limit: int, *, timeout: float) -> list[Ban]:
        """See `BanList.page`."""
        return _listed(await self._run("page", offset, limit, timeout=timeout))

    async def find(self, subjects: Iterable[Subject], *, timeout: float) -> list[Ban]:
        """See `BanList.find`."""
        members = [member for each in subjects for member in _members(each, by_hand=True)]
        return _listed(await self._run("find", *members, timeout=timeout))

    async def _run(self, *arguments: str | int, timeout: float) -> Any:
        return await _SCRIPT.run(self._server, self._keys, *arguments, timeout=timeout)


class MemoryBanList:
    """The list in this process.

    Args:
        clock: Returns seconds from any starting point.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self.clock = clock
        self.current: dict[BanTarget, float] = {}
        self._bans: dict[str, tuple[float, Ban]] = {}

    async def put(self, ban: Ban, seconds: float, *, timeout: float) -> bool:
        """See `BanList.put`."""
        self._prune()
        member = _member(ban.subject, ban.key)
        if len(self._bans) >= MAX_BANS and member not in self._bans:
            return False
        until = None if math.isinf(seconds) else ban.since + timedelta(seconds=seconds)
        self._bans[member] = self.clock() + seconds, ban._replace(until=until)
        if not ban.key:
            self.current[_target_of(ban.subject)] = self.clock() + seconds
        return True

    async def drop(self, subject: Subject, *, by_hand: bool = True, timeout: float) -> list[Ban]:
        """See `BanList.drop`."""
        self._prune()
        if by_hand:
            self.current.pop(_target_of(subject), None)
        members = _members(subject, by_hand)
        return [self._bans.pop(member)[1] for member in members if member in self._bans]

    async def load(self, version: str, *, timeout: float) -> None:
        """See `BanList.load`: nothing has to be loaded."""

    async def page(self, offset: int, limit: int, *, timeout: float) -> list[Ban]:
        """See `BanList.page`."""
        self._prune()
        ordered = sorted(self._bans.items(), key=lambda item: (item[1][0], item[0]))
        return [ban for _, (_, ban) in ordered[offset : offset + limit]]

    async def find(self, subjects: Iterable[Subject], *, timeout: float) -> list[Ban]:
        """See `BanList.find`."""
        self._prune()
        members = [member for each in subjects for member in _members(each, by_hand=True)]
        return [self._bans[member][1] for member in members if member in self._bans]

    def _prune(self) -> None:
        now = self.clock()
        for member in [member for member, (end, _) in self._bans.items() if end <= now]:
            _, ban = self._bans.pop(member)
            if not ban.key:
                self.current.pop(_target_of(ban.subject), None)


_in_memory: Final[WeakKeyDictionary[MemoryStorage, dict[str, MemoryBanList]]] = WeakKeyDictionary()


def ban_list_of(storage: Storage, prefix: str) -> BanList:
    """Return the list of bans for a storage and prefix; all its limiters share it."""
    custom: Any = storage
    if hasattr(custom, "ban_list"):
        found: BanList = custom.ban_list(prefix)
        return found
    if hasattr(custom, "execute"):
        return RedisBanList(custom, prefix)
    if not isinstance(storage, MemoryStorage):  # a custom storage: bans apply in this process only
        return MemoryBanList()
    lists = _in_memory.setdefault(storage, {})
    return lists.setdefault(prefix, MemoryBanList(storage._clock))


def _member(subject: Subject, key: str) -> str:
    """The name of an entry: `hand:42::::`, or `penalty:…` for a ban by a penalty."""
    return ":".join(
        ["penalty" if key else "hand", *("" if part is None else str(part) for part in subject)]
    )


def _members(subject: Subject, by_hand: bool) -> list[str]:
    return [_member(subject, "penalty"), *([_member(subject, "")] if by_hand else [])]


def _subject(member: str) -> Subject:
    user, chat, topic, bot, business = member.split(":", 5)[1:]
    ids = [int(part) if part else None for part in (user, chat, topic, bot)]
    return Subject(ids[0], ids[1], ids[2], ids[3], business or None)


def _listed(reply: Any) -> list[Ban]:
    """What the script says of bans: the time, and of each member, end and details."""
    _, *rest = map(_text, reply)
    return [
        _ban(_subject(member), details, float(end))
        for member, end, details in zip(rest[::3], rest[1::3], rest[2::3], strict=True)
    ]


def _ban(subject: Subject, details: bytes | str, end_ms: float | None) -> Ban:
    since, _, text = _text(details).partition(" ")
    try:
        said = json.loads(text)
        began = datetime.fromtimestamp(int(since) / 1_000, UTC)
    except ValueError as error:
        raise ConfigError(
            f"the list of bans holds {text!r}, which is not a ban: delete it"
        ) from error
    until = (
        None
        if end_ms is None or math.isinf(end_ms)
        else datetime.fromtimestamp(end_ms / 1_000, UTC)
    )
    return Ban(subject, began, until, said["reason"], said["by"], said["key"])


def _target_of(subject: Subject) -> BanTarget:
    return subject.user, subject.chat, subject.bot


def _text(value: Any) -> str:
    return value.decode("utf-8", "surrogatepass") if isinstance(value, bytes) else str(value)
