"""Bans: bans by hand and the list of all bans; decisions use this process's copy of it."""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections.abc import Callable, Coroutine, Mapping, Sequence
from contextlib import suppress
from contextvars import Context
from datetime import UTC, datetime, timedelta
from typing import Any, Final

from cachetools import TTLCache

from bot_ratelimit.algorithms.verdict import Verdict
from bot_ratelimit.errors import ConfigError, RateLimitError, StorageError, printable
from bot_ratelimit.limiter.arguments import FOREVER
from bot_ratelimit.limiter.deadline import Deadline
from bot_ratelimit.limiter.observer import Observer
from bot_ratelimit.rules.limit import Limit
from bot_ratelimit.rules.penalty import Penalty
from bot_ratelimit.rules.rule import Scope, Subject
from bot_ratelimit.storage.banlist import Ban, BanList, BanTarget
from bot_ratelimit.storage.base import Count, Storage, bans_of
from bot_ratelimit.storage.loops import LOG_EVERY, PerLoop, Seldom, Ticker

log = logging.getLogger("bot_ratelimit")

REFRESH: Final = 0.5
"""Seconds between two checks for changes of the list, while decisions are made."""
IDLE: Final = 60.0
"""Seconds without a decision after which the checks stop."""
MAX_WRITES: Final = 100
"""How many bans of penalties may be written to the list at a time; further ones apply but are not
listed."""
MAX_LINES: Final = 20
"""How many bans of penalties are logged in a minute; a raid of thousands must not flood the log."""
_NEVER: Final = datetime.max.replace(tzinfo=UTC)


class Bans:
    """The bans of one limiter.

    Args:
        storage: Where the list is kept. A storage without one bans nobody.
        key_prefix: The prefix of its keys.
        timeout: The time-out of the storage in seconds.
    """

    def __init__(self, storage: Storage, key_prefix: str, timeout: float) -> None:
        self._storage, self._prefix, self._timeout = storage, key_prefix, timeout
        bans = self._list = storage.bans(key_prefix)
        self._clock: Callable[[], float] = time.monotonic if bans is None else bans.clock
        self._is_always_fresh = bans is None or bans.current is not None
        self._version = ""
        self.current: Mapping[BanTarget, float] = {}
        """The ends of the bans by hand; empty in most bots, and then a decision checks nothing
        else."""
        if bans is not None and bans.current is not None:
            self.current = bans.current
        self.is_stale = not self._is_always_fresh
        """Whether the copy may be outdated, because there was no decision for a while."""
        self.used = False
        """Set by every decision, and reset by every check."""
        self._idle = 0.0
        self._ticker = Ticker(self._tick, REFRESH, ended=self._ended)
        self._loaded = PerLoop(asyncio.Event)
        self._seldom = Seldom()
        self._writes: set[asyncio.Task[None]] = set()
        self._written: TTLCache[str, float] = TTLCache(10_000, 86_400.0, timer=time.monotonic)

    def _required(self) -> BanList:
        return self._list or bans_of(self._storage, self._prefix)  # which raises

    def left(self, subject: Subject) -> float:
        """Seconds until the ban by hand of the subject ends; 0.0 if it is not banned."""
        user, chat, bot = subject.user, subject.chat, subject.bot
        targets: list[BanTarget] = [(user, None, None), (None, chat, None), (user, chat, None)]
        if bot is not None:
            targets += [(user, None, bot), (None, chat, bot), (user, chat, bot)]
        ends = (self.current.get(each, 0.0) for each in targets if each[:2] != (None, None))
        end = max(ends, default=0.0)
        return min(max(0.0, end - self._clock()), FOREVER)

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
        dropped = await self._required().drop(subject, timeout=self._timeout)
        await self._reload()
        return dropped

    async def page(self, offset: int, limit: int) -> list[Ban]:
        """Return a page of the list, with every ban that this process has imposed."""
        await self._settle()
        return await self._required().page(offset, limit, timeout=self._timeout)

    async def of(self, subject: Subject) -> list[Ban]:
        """Return the bans that refuse what the subject sends, latest end first."""
        user, chat, _, bot, _ = subject
        asked = {_penalty_target(Penalty("1/s", 1, scope=scope), subject): None for scope in Scope}
        for each in (None, bot):
            for ids in ((user, None), (None, chat), (user, chat)):
                asked[Subject(*ids, bot=each)] = None
        somebody = [each for each in asked if each[:2] != (None, None)]
        found = await self._required().find(somebody, timeout=self._timeout)
        holding = [ban for ban in found if not ban.key or ban.subject.bot == bot]
        return sorted(holding, key=lambda ban: ban.until or _NEVER, reverse=True)

    # -- this process's copy ----------------------------------------------------------------------

    async def ensure_fresh(self, deadline: Deadline | None) -> None:
        """Load the list, wait for it, and keep it up to date while decisions are made.

        Args:
            deadline: The time that is left to wait; None does not wait.
        """
        self._ticker.start(at_once=True)
        if deadline is None or not deadline.left():
            return
        began, loaded = time.monotonic(), self._loaded.get()
        with suppress(TimeoutError):
            async with asyncio.timeout(deadline.left()):
                await loaded.wait()
        deadline.waited(began, answered=loaded.is_set())

    async def close(self) -> None:
        """Stop the checks until the next decision, and wait for writes in progress."""
        for task in await self._settle():
            task.cancel()
        await self._ticker.stop()
        self._ended()

    async def _settle(self) -> Sequence[asyncio.Task[None]]:
        """Wait until the writes in progress have ended, and return them."""
        loop = asyncio.get_running_loop()
        if writes := [task for task in self._writes if task.get_loop() is loop]:
            await asyncio.wait(writes, timeout=self._timeout)
        return writes

    async def _tick(self) -> bool:
        self._idle = 0.0 if self.used or self.is_stale else self._idle + REFRESH
        self.used = False
        await self._reload()
        self.is_stale = False
        self._loaded.get().set()
        return self._idle < IDLE

    def _ended(self) -> None:
        """Let the next decision load the list."""
        self.is_stale = not self._is_always_fresh
        self._loaded = PerLoop(asyncio.Event)

    async def _reload(self) -> None:
        """Load the list if it has changed; if that fails, the copy stays as it is."""
        try:
            loaded = await self._required().load(self._version, timeout=self._timeout)
        except StorageError:  # decisions report it
            return
        except Exception as error:
            if self._seldom():
                known = isinstance(error, ConfigError)
                log.warning(
                    "The list of bans cannot be read, so bans by hand may not apply: %s",
                    error,
                    exc_info=None if known else error,
                )
            return
        if loaded is not None:
            self._version, self.current = loaded

    # -- bans of penalties ------------------------------------------------------------------------

    def add_penalty_ban(self, subject: Subject, count: Count, verdict: Verdict) -> None:
        """Add a penalty's ban to the list, in the background, when it begins or grows."""
        penalty = count.penalty
        if penalty is None or not penalty.listed or verdict.remaining:
            return
        seconds, now = verdict.reset / 1e6, time.monotonic()
        began = not verdict.wait
        grew = penalty.longest_ms and now + seconds > self._written.get(count.key, 0.0) + 1.0
        if not (began or grew):
            return
        self._written[count.key] = now + seconds
        who = _penalty_target(penalty, subject)
        ban = Ban(who, datetime.now(UTC), None, str(penalty), "penalty", count.key)
        self._write(lambda bans: bans.put(ban, seconds, timeout=self._timeout))

    def remove_penalty_bans(self, subject: Subject, counts: Sequence[Count]) -> None:
        """Remove a penalty's bans from the list, in the background, because its count was reset."""
        for penalty, key in ((count.penalty, count.key) for count in counts):
            if penalty is not None and penalty.listed:
                self._written.pop(key, None)
                self._drop_penalty_ban(_penalty_target(penalty, subject))

    def _drop_penalty_ban(self, who: Subject) -> None:
        self._write(lambda bans: bans.drop(who, by_hand=False, timeout=self._timeout))

    def _write(self, change: Callable[[BanList], Coroutine[Any, Any, object]]) -> None:
        """Change the list in the background."""
        bans = self._list
        if bans is None or len(self._writes) >= MAX_WRITES:
            return

        async def write() -> None:
            try:
                await change(bans)
            except RateLimitError as error:
                log.warning("The list of bans could not be written: %s", error)

        task = asyncio.get_running_loop().create_task(write(), context=Context())
        self._writes.add(task)
        task.add_done_callback(self._writes.discard)


class PenaltyReports:
    """Tells the log, the observers and the list of the bans that penalties impose.

    Args:
        bans: The list.
        observer: Is told of each ban.
        clock: Seconds from any starting point.
    """

    def __init__(self, bans: Bans, observer: Observer, clock: Callable[[], float]) -> None:
        self._bans, self._observer, self._clock = bans, observer, clock
        self._since = -math.inf
        self._count = 0

    def report(
        self, subject: Subject, counts: Sequence[Count], verdicts: Sequence[Verdict]
    ) -> None:
        """Report what a hit that was refused by a penalty has caused."""
        for count, verdict in zip(counts, verdicts, strict=True):
            self._bans.add_penalty_ban(subject, count, verdict)
            penalty = count.penalty
            if penalty is None or penalty.imposed:  # the code that imposes it reports it
                continue
            if not verdict.wait and not verdict.remaining:
                # The ban did not refuse this hit, and no strike is left: this hit caused the ban.
                seconds = verdict.reset / 1_000_000
                self._log(seconds, count.key, penalty)
                self._observer.banned(count.key, seconds)

    def _log(self, seconds: float, key: str, penalty: Penalty) -> None:
        """Log up to `MAX_LINES` bans in a minute, and further ones as a number."""
        now = self._clock()
        if now - self._since >= LOG_EVERY:
            if self._count > MAX_LINES:
                log.warning("%d more bans were not logged", self._count - MAX_LINES)
            self._since, self._count = now, 0
        self._count += 1
        if self._count <= MAX_LINES:
            log.warning("Banned for %g s: %s (%s)", seconds, printable(key), penalty)
        elif self._count == MAX_LINES + 1:
            log.warning(
                "Penalties ban more than %d users a minute: the next bans are only counted; "
                "`bot-ratelimit bans` lists all",
                MAX_LINES,
            )


def penalty_counts(prefix: str, subject: Subject, bans: list[Ban]) -> list[Count]:
    """The penalty counts to reset for a subject: those in the list, and those of its ids."""
    keys = {ban.key for ban in bans if ban.key}
    for scope in (Scope.USER, Scope.CHAT, Scope.MEMBER):
        penalty = Penalty("1/s", 1, scope=scope)
        key = penalty.key(prefix, subject)
        if key is not None and _penalty_target(penalty, subject) == subject:
            keys.add(key)
    limit = Limit(1, 1)
    return [Count(key, limit, penalty=Penalty("1/s", 1)) for key in sorted(keys)]


def _penalty_target(penalty: Penalty, subject: Subject) -> Subject:
    """The part of the subject that the penalty counts by."""
    user, chat, topic, bot, business = subject
    ids: dict[Scope, tuple[int | None, int | None, int | None]] = {
        Scope.USER: (user, None, None),
        Scope.CHAT: (None, chat, None),
        Scope.MEMBER: (user, chat, None),
        Scope.TOPIC: (None, chat, topic),
    }
    assert isinstance(penalty.scope, Scope)  # noqa: S101 - a Penalty's own promise
    first, second, third = ids.get(penalty.scope, (None, None, None))
    return Subject(first, second, third, bot, business)
