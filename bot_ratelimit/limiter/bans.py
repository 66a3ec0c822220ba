"""Bans: bans by hand and the list of all bans; decisions use this process's copy of it."""

from __future__ import annotations

import asyncio
import logging
import math
import time
from contextlib import suppress
from contextvars import Context
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import TYPE_CHECKING, Any, Final
from weakref import finalize, ref

from cachetools import TTLCache

from bot_ratelimit.algorithms.verdict import Verdict
from bot_ratelimit.errors import ConfigError, RateLimitError, StorageError
from bot_ratelimit.limiter.failures import printable
from bot_ratelimit.rules.limit import Limit
from bot_ratelimit.rules.parsing import parse_period
from bot_ratelimit.rules.penalty import Penalty
from bot_ratelimit.rules.rule import Scope, Subject
from bot_ratelimit.storage.banlist import Ban, BanTarget, MemoryBanList
from bot_ratelimit.storage.base import Count, Storage

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

log = logging.getLogger("bot_ratelimit")

REFRESH: Final = 0.5
"""Seconds between two checks for changes of the list, while decisions are made."""
IDLE: Final = 60.0
"""Seconds without a decision after which the checks stop."""
FOREVER: Final = 10 * 365 * 86_400.0
"""`retry_after` of a permanent ban, in seconds; also the longest ban that ends."""
MAX_WRITES: Final = 100
"""How many bans of penalties may be written to the list at a time; further ones apply but are not
listed."""
MAX_LINES: Final = 20
"""How many bans of penalties are logged in a minute; a raid of thousands must not flood the log."""
_MAX_TEXT: Final = 500
_WARN_EVERY: Final = 60.0
_NEVER: Final = datetime.max.replace(tzinfo=UTC)


class Bans:
    """The bans of one limiter.

    Args:
        storage: Where the list is kept.
        key_prefix: The prefix of its keys.
        timeout: The time-out of the storage in seconds.
    """

    def __init__(self, storage: Storage, key_prefix: str, timeout: float) -> None:
        self._list = storage.bans(key_prefix) or MemoryBanList()
        self._timeout = timeout
        self._version = ""
        self._live = self._list.current is not None
        self.current: Mapping[BanTarget, float] = (
            {} if self._list.current is None else self._list.current
        )
        """The ends of the bans by hand; empty in most bots, and then a decision checks nothing
        else."""
        self.is_stale = not self._live
        """Whether the copy may be outdated, because there was no decision for a while."""
        self.used = False
        """Set by every decision, and reset by every check."""
        self._loading: asyncio.Task[None] | None = None
        self._refreshing: asyncio.Task[None] | None = None
        self._warned_at = -math.inf
        self._writes: set[asyncio.Task[None]] = set()
        self._written: TTLCache[str, float] = TTLCache(10_000, 86_400.0, timer=time.monotonic)

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
        if not await self._list.put(ban, seconds, timeout=self._timeout):
            raise ConfigError("the list of bans is full: unban some subjects, or use a Penalty")
        await self._reload()
        until = None if math.isinf(seconds) else ban.since + timedelta(seconds=seconds)
        return ban._replace(until=until)

    async def unban(self, subject: Subject) -> list[Ban]:
        """Remove all bans of the subject from the list, and return them."""
        dropped = await self._list.drop(subject, timeout=self._timeout)
        await self._reload()
        return dropped

    async def page(self, offset: int, limit: int) -> list[Ban]:
        """Return a page of the list."""
        return await self._list.page(offset, limit, timeout=self._timeout)

    async def of(self, subject: Subject) -> list[Ban]:
        """Those on the list that refuse what the subject sends; the one that ends last first."""
        user, chat, _, bot, _ = subject
        asked = {_penalty_target(Penalty("1/s", 1, scope=scope), subject): None for scope in Scope}
        for each in (None, bot):
            for ids in ((user, None), (None, chat), (user, chat)):
                asked[Subject(*ids, bot=each)] = None
        somebody = [each for each in asked if each[:2] != (None, None)]
        found = await self._list.find(somebody, timeout=self._timeout)
        holding = [ban for ban in found if not ban.key or ban.subject.bot == bot]
        return sorted(holding, key=lambda ban: ban.until or _NEVER, reverse=True)

    def refresh_soon(self) -> asyncio.Task[None]:
        """Load the list now, and keep it up to date while decisions are made."""
        loop, loading = asyncio.get_running_loop(), self._loading
        if loading is None or loading.done() or loading.get_loop() is not loop:
            self._loading = loading = loop.create_task(self._load(), context=Context())
        return loading

    async def ensure_fresh(self, seconds: float) -> None:
        """Load the list now, and wait for about `seconds` at most.

        The wait is at least a fifth of the time-out: a busy event loop must not cause bans to be
        missed.
        """
        await asyncio.wait([self.refresh_soon()], timeout=max(seconds, self._timeout / 5))

    def add_penalty_ban(self, subject: Subject, charge: Count, verdict: Verdict) -> None:
        """Add a penalty's ban to the list, in the background, when it begins or grows."""
        penalty = charge.penalty
        if penalty is None or not penalty.listed or verdict.remaining:
            return
        seconds, now = verdict.reset / 1e6, time.monotonic()
        began = not verdict.wait
        grew = penalty.longest_ms and now + seconds > self._written.get(charge.key, 0.0) + 1.0
        if not (began or grew) or len(self._writes) >= MAX_WRITES:
            return
        self._written[charge.key] = now + seconds
        who = _penalty_target(penalty, subject)
        ban = Ban(who, datetime.now(UTC), None, str(penalty), "penalty", charge.key)
        self._in_background(self._list.put(ban, seconds, timeout=self._timeout))

    def remove_penalty_bans(self, subject: Subject, charges: list[Count]) -> None:
        """Remove a penalty's bans from the list, in the background, because its count was reset."""
        for charge in charges:
            penalty = charge.penalty
            if penalty is not None and penalty.listed and len(self._writes) < MAX_WRITES:
                self._written.pop(charge.key, None)
                who = _penalty_target(penalty, subject)
                self._in_background(self._list.drop(who, by_hand=False, timeout=self._timeout))

    async def close(self) -> None:
        """Stop the checks until the next decision, and wait for writes in progress."""
        loop = asyncio.get_running_loop()
        writes = [task for task in self._writes if task.get_loop() is loop]
        if writes:
            await asyncio.wait(writes, timeout=self._timeout)
        tasks = [task for task in (self._loading, self._refreshing, *writes) if task is not None]
        mine = [task for task in tasks if task.get_loop() is loop]
        for task in mine:
            task.cancel()
        if mine:
            await asyncio.wait(mine)
        if self._refreshing is not None:  # also one that was started just now
            _cancel(self._refreshing)
        self._loading = self._refreshing = None
        self.is_stale = not self._live

    async def _load(self) -> None:
        try:
            await self._reload()
        finally:
            self._loading = None
        # Not reached when cancelled: the loop is ending, and the next decision loads the list
        # again.
        self.is_stale = False
        if self._refreshing is None or self._refreshing.done():
            self._refreshing = asyncio.create_task(_refresh(ref(self)), context=Context())
            self._refreshing.add_done_callback(partial(_outdate, ref(self)), context=Context())
            finalize(self, _cancel, self._refreshing).atexit = False

    async def _reload(self) -> None:
        """Load the list if it has changed; if that fails, the copy stays as it is."""
        try:
            loaded = await self._list.load(self._version, timeout=self._timeout)
        except StorageError:  # decisions report it
            return
        except Exception as error:
            if time.monotonic() - self._warned_at > _WARN_EVERY:
                self._warned_at = time.monotonic()
                known = isinstance(error, ConfigError)
                log.warning(
                    "The list of bans cannot be read, so bans by hand may not apply: %s",
                    error,
                    exc_info=None if known else error,
                )
            return
        if loaded is not None:
            self._version, self.current = loaded

    def _in_background(self, work: Any) -> None:
        async def write() -> None:
            try:
                await work
            except RateLimitError as error:
                log.warning("The list of bans could not be written: %s", error)

        task = asyncio.get_running_loop().create_task(write(), context=Context())
        self._writes.add(task)
        task.add_done_callback(self._writes.discard)


class BanLog:
    """Logs the bans that penalties impose: up to `MAX_LINES` in a minute, further ones as a number.

    Args:
        clock: Seconds from any starting point.
    """

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._since = -math.inf
        self._bans = 0

    def banned(self, seconds: float, key: str, penalty: Penalty) -> None:
        """Log a ban, unless there were too many in this minute."""
        now = self._clock()
        if now - self._since >= _WARN_EVERY:
            if self._bans > MAX_LINES:
                log.warning("%d more bans were not logged", self._bans - MAX_LINES)
            self._since, self._bans = now, 0
        self._bans += 1
        if self._bans <= MAX_LINES:
            log.warning("Banned for %g s: %s (%s)", seconds, printable(key), penalty)
        elif self._bans == MAX_LINES + 1:
            log.warning(
                "Penalties ban more than %d users a minute: the next bans are only counted; "
                "`bot-ratelimit bans` lists all",
                MAX_LINES,
            )


async def _refresh(owner: ref[Bans]) -> None:
    """Reload the list regularly, until there is no decision for a while or the limiter is gone."""
    idle = 0.0
    try:
        while idle < IDLE:
            await asyncio.sleep(REFRESH)
            bans = owner()
            if bans is None:
                return
            idle = 0.0 if bans.used else idle + REFRESH
            bans.used = False
            await bans._reload()
            del bans
    finally:  # also when the event loop ends: the bot may run in another one next
        _outdate(owner)


def _outdate(owner: ref[Bans], _: object = None) -> None:
    """Let the next decision load the list; called twice, as a task may end before it has begun."""
    bans = owner()
    if bans is not None:
        bans.is_stale = True


def _cancel(task: asyncio.Task[None]) -> None:
    with suppress(RuntimeError):  # its event loop has ended
        task.cancel()


def check_target(subject: object) -> Subject:
    """Return the subject if it names a user or a chat.

    Raises:
        ConfigError: It does not, or it is not a Subject.
    """
    if not isinstance(subject, Subject):
        raise ConfigError(f"subject={subject!r}: expected a Subject, for example Subject(user=42)")
    if subject.user is None and subject.chat is None:
        raise ConfigError(
            "the subject of a ban names nobody: give a user, a chat or both, for example "
            "Subject(user=42)"
        )
    for name, part in zip(
        ("user", "chat", "bot"), (subject.user, subject.chat, subject.bot), strict=True
    ):
        if part is not None and (isinstance(part, bool) or not isinstance(part, int)):
            raise ConfigError(
                f"{name}={part!r}: expected an id, a whole number, for example Subject(user=42)"
            )
    return subject


def check_bannable(subject: object) -> Subject:
    """Return the subject if it can be banned by hand.

    Raises:
        ConfigError: It names nobody, or more than a user, a chat or a user in a chat.
    """
    subject = check_target(subject)
    if subject.topic is not None or subject.business is not None:
        raise ConfigError(
            f"{subject!r}: a user, a chat or a user in a chat can be banned, for example "
            "Subject(user=42, chat=-100123)"
        )
    return subject


def check_ban_length(value: object) -> float:
    """Return the length of a ban in seconds; infinity for None.

    Raises:
        ConfigError: It is neither None, nor a number of seconds, nor a period such as `"1h"`.
    """
    if value is None:
        return math.inf
    try:
        seconds = parse_period(value) if isinstance(value, str) else value
    except ConfigError:
        seconds = None
    if isinstance(seconds, bool) or not isinstance(seconds, (int, float)):
        seconds = 0
    if not 0 < seconds <= FOREVER:
        raise ConfigError(
            f"the length of a ban is {value!r}: expected a period such as '1h', seconds above 0, "
            "at most ten years, or 'forever' (in Python: None)"
        )
    return float(seconds)


def check_text(name: str, value: object) -> str:
    """Return the text if it is a str that is not too long, and can be written in UTF-8.

    Raises:
        ConfigError: It is not.
    """
    if not isinstance(value, str) or len(value) > _MAX_TEXT:
        raise ConfigError(f"{name}={value!r:.80}: expected a str of at most {_MAX_TEXT} characters")
    try:
        value.encode()
    except UnicodeEncodeError:  # such as bytes of a command line that are not UTF-8
        raise ConfigError(
            f"{name}={value!r:.80}: expected text that can be written in UTF-8"
        ) from None
    return value


def check_page(offset: object, limit: object) -> tuple[int, int]:
    """Return both numbers if they are a valid page.

    Raises:
        ConfigError: They are not.
    """
    if isinstance(offset, bool) or not isinstance(offset, int) or offset < 0:
        raise ConfigError(f"offset={offset!r}: expected a whole number from 0 up")
    if isinstance(limit, bool) or not isinstance(limit, int) or not 1 <= limit <= 1_000:
        raise ConfigError(f"limit={limit!r}: expected a whole number from 1 to 1000")
    return offset, limit


def penalty_charges(prefix: str, subject: Subject, bans: list[Ban]) -> list[Count]:
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
