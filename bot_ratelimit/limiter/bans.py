"""Bans: bans by hand and the list of all bans; decisions use this process's copy of it."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any, Final, Literal

from cachetools import TTLCache

from bot_ratelimit.algorithms.verdict import Verdict
from bot_ratelimit.errors import ConfigError, RateLimitError, StorageError, printable
from bot_ratelimit.limiter.arguments import FOREVER
from bot_ratelimit.limiter.observer import Observer
from bot_ratelimit.rules.limit import Limit
from bot_ratelimit.rules.penalty import Penalty
from bot_ratelimit.rules.rule import Scope, Subject
from bot_ratelimit.storage.banlist import Ban, BanList, BanTarget, MemoryBanList
from bot_ratelimit.storage.base import Count, Storage
from bot_ratelimit.storage.deadline import Deadline
from bot_ratelimit.storage.loops import LOG_EVERY, Seldom, Tasks, Ticker
from bot_ratelimit.storage.memory import MemoryStorage

log = logging.getLogger("bot_ratelimit")

REFRESH: Final = 0.5
"""Seconds between two checks for changes of the list, while decisions are made."""
IDLE: Final = 60.0
"""Seconds without a decision after which the checks stop."""
MAX_WRITES: Final = 1_000
"""How many bans of penalties may be written to the list at a time; further ones apply but are not
listed."""
MAX_LINES: Final = 20
"""How many bans of penalties are logged in a minute; a raid of thousands must not flood the log."""
_LINES: Final = Limit(MAX_LINES, LOG_EVERY)
_NEVER: Final = datetime.max.replace(tzinfo=UTC)


class Bans:
    """The bans of one limiter. A storage without a list of bans bans nobody by hand.

    The observer is told of each ban of a penalty; the clock is for the log.
    """

    def __init__(
        self,
        storage: Storage,
        key_prefix: str,
        timeout: float,
        observer: Observer,
        clock: Callable[[], float],
    ) -> None:
        self._timeout, self._observer = timeout, observer
        self._lacking: ConfigError | None = None
        self._list: BanList = MemoryBanList()
        try:
            self._list = storage.bans(key_prefix)
        except ConfigError as error:
            self._lacking = error
        self._version = ""
        known = self._list.current
        self.current: Mapping[BanTarget, float] = {} if known is None else known
        """The ends of the bans by hand; empty in most bots, and then a decision checks nothing
        else."""
        self._is_always_fresh = known is not None
        self.is_stale = not self._is_always_fresh
        """Whether the copy may be outdated, because there was no decision for a while."""
        self.used = False
        """Set by every decision, and reset by every check."""
        self._idle = 0.0
        self._ticker = Ticker(self._tick, REFRESH, ended=self._ended)
        self._seldom = Seldom()
        self._writes = Tasks()
        self._written: TTLCache[str, float] = TTLCache(10_000, 86_400.0, timer=time.monotonic)
        self._lines, self._raids = MemoryStorage(1, clock=clock), Seldom(clock=clock)

    def _required(self) -> BanList:
        if self._lacking is not None:
            raise self._lacking
        return self._list

    def left(self, subject: Subject) -> float:
        """Seconds until the ban by hand of the subject ends; 0.0 if it is not banned."""
        user, chat, bot = subject.user, subject.chat, subject.bot
        targets: list[BanTarget] = [(user, None, None), (None, chat, None), (user, chat, None)]
        if bot is not None:
            targets += [(user, None, bot), (None, chat, bot), (user, chat, bot)]
        ends = (self.current.get(each, 0.0) for each in targets if each[:2] != (None, None))
        end = max(ends, default=0.0)
        return min(max(0.0, end - self._list.clock()), FOREVER)

    async def ban(self, subject: Subject, seconds: float, reason: str, by: str) -> Ban:
        """Add a ban by hand to the list and to this process's copy."""
        ban = Ban(subject, datetime.now(UTC), None, reason, by)
        if not await self._required().put(ban, seconds, timeout=self._timeout):
            raise ConfigError("the list of bans is full: unban some subjects, or use a Penalty")
        await self._reload()
        until = None if math.isinf(seconds) else ban.since + timedelta(seconds=seconds)
        return ban._replace(until=until)

    async def unban(self, subject: Subject) -> list[Ban]:
        """Remove all bans of the subject from the list, and return them."""
        await self._writes.settle(self._timeout)
        dropped = await self._required().drop(subject, timeout=self._timeout)
        await self._reload()
        return dropped

    async def page(self, offset: int, limit: int) -> list[Ban]:
        """Return a page of the list, with every ban that this process has imposed."""
        await self._writes.settle(self._timeout)
        return await self._required().page(offset, limit, timeout=self._timeout)

    async def of(self, subject: Subject) -> list[Ban]:
        """Return the bans that refuse what the subject sends, latest end first."""
        user, chat, _, bot, _ = subject
        asked = {_counted(scope, subject): None for scope in Scope}
        for each in (None, bot):
            for ids in ((user, None), (None, chat), (user, chat)):
                asked[Subject(*ids, bot=each)] = None
        somebody = [each for each in asked if each[:2] != (None, None)]
        found = await self._required().find(somebody, timeout=self._timeout)
        holding = [ban for ban in found if not ban.key or ban.subject.bot == bot]
        return sorted(holding, key=lambda ban: ban.until or _NEVER, reverse=True)

    # -- this process's copy ----------------------------------------------------------------------

    def open(self) -> None:
        """Load the list in the background, so that the first decisions know it."""
        if self.is_stale and self._lacking is None:
            self._ticker.start(at_once=True)

    async def ensure_fresh(self, deadline: Deadline | None) -> None:
        """Load the list, and keep it up to date while decisions are made; wait if there is time."""
        self._ticker.start(at_once=True)
        if deadline is not None and deadline.left():
            began = time.monotonic()
            loaded = await self._ticker.first(deadline.left())
            deadline.waited(began, answered=loaded)

    async def close(self) -> None:
        """Stop the checks until the next decision, and wait for writes in progress."""
        await self._writes.finish(self._timeout)
        await self._ticker.stop()
        self._ended()

    async def _tick(self) -> bool:
        self._idle = 0.0 if self.used or self.is_stale else self._idle + REFRESH
        self.used = False
        if not await self._reload() and self.is_stale and not self.used:
            return False  # at the start: the first decision loads it, and waits for it
        self.is_stale = False
        return self._idle < IDLE

    def _ended(self) -> None:
        """Let the next decision load the list."""
        self.is_stale = not self._is_always_fresh

    async def _reload(self) -> bool:
        """Load the list if it has changed; if that fails, the copy stays as it is: False."""
        try:
            # No update waits for this longer than its own deadline, and a long list takes a while.
            loaded = await self._required().load(self._version, timeout=max(self._timeout, 2.0))
            if loaded is not None:
                self._version, self.current = loaded
        except StorageError:  # decisions report it
            return False
        except Exception as error:
            if self._seldom():
                log.warning(
                    "The list of bans cannot be read, so bans by hand may not apply: %s",
                    error,
                    exc_info=None if isinstance(error, ConfigError) else error,
                )
        return True

    # -- bans of penalties ------------------------------------------------------------------------

    def report(
        self, subject: Subject, counts: Sequence[Count], verdicts: Sequence[Verdict]
    ) -> None:
        """List, log and report the bans that a hit has caused which a penalty refused."""
        for count, (wait, remaining, reset) in zip(counts, verdicts, strict=True):
            penalty, seconds = count.penalty, reset / 1e6
            if penalty is None or remaining:
                continue
            if penalty.listed:
                self._add(penalty, subject, count.key, seconds, began=not wait)
            # The ban did not refuse this hit, and no strike is left: this hit caused the ban.
            if not wait and not penalty.imposed:  # what imposes it reports it
                self._log(seconds, count.key, penalty)
                self._observer.banned(count.key, seconds)

    def _add(
        self, penalty: Penalty, subject: Subject, key: str, seconds: float, *, began: bool
    ) -> None:
        """Add a ban to the list when it begins or grows."""
        ends = time.monotonic() + seconds
        grew = penalty.longest_ms and ends > self._written.get(key, 0.0) + 1.0
        if began or grew:
            self._written[key] = ends
            who = _counted(penalty.scope, subject)
            ban = Ban(who, datetime.now(UTC), None, str(penalty), "penalty", key)
            self._write("put", ban, seconds)

    def remove_penalty_bans(self, subject: Subject, counts: Sequence[Count]) -> None:
        """Remove a penalty's bans from the list, in the background, because its count was reset."""
        for penalty, key in ((count.penalty, count.key) for count in counts):
            if penalty is not None and penalty.listed:
                self._written.pop(key, None)
                self._write("drop", _counted(penalty.scope, subject), by_hand=False)

    def _write(self, action: Literal["put", "drop"], *what: Any, **options: Any) -> None:
        """Change the list in the background."""
        if self._lacking is not None or len(self._writes) >= MAX_WRITES:
            return

        async def write() -> None:
            try:
                await getattr(self._list, action)(*what, timeout=self._timeout, **options)
            except RateLimitError as error:
                if self._seldom("written"):
                    log.warning("The list of bans could not be written: %s", error)

        self._writes.begin(write())

    def _log(self, seconds: float, key: str, penalty: Penalty) -> None:
        """Log a ban, unless there were many in this minute."""
        if not self._lines.hit("", _LINES, 1).wait:
            log.warning("Banned for %g s: %s (%s)", seconds, printable(key), penalty)
        elif self._raids():
            log.warning(
                "Penalties ban more than %d users a minute: the next bans are not logged; "
                "`bot-ratelimit bans` lists them, but at most %d of those that begin at once",
                MAX_LINES,
                MAX_WRITES,
            )


def penalty_counts(prefix: str, subject: Subject, bans: list[Ban]) -> list[Count]:
    """The penalty counts to reset for a subject: those in the list, and those of its ids."""
    keys = {ban.key for ban in bans if ban.key}
    for scope in (Scope.USER, Scope.CHAT, Scope.MEMBER):
        key = Penalty("1/s", 1, scope=scope).key(prefix, subject)
        if key is not None and _counted(scope, subject) == subject:
            keys.add(key)
    return [Count(key, Limit(1, 1), penalty=Penalty("1/s", 1)) for key in sorted(keys)]


def _counted(scope: object, subject: Subject) -> Subject:
    """The part of the subject that a penalty with this scope counts by."""
    user, chat, topic, bot, business = subject
    ids: dict[object, tuple[int | None, int | None, int | None]] = {
        Scope.USER: (user, None, None),
        Scope.CHAT: (None, chat, None),
        Scope.MEMBER: (user, chat, None),
        Scope.TOPIC: (None, chat, topic),
    }
    return Subject(*ids.get(scope, (None, None, None)), bot, business)
