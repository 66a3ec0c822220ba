"""MemoryStorage: counts in this process, for a single instance or while Redis is unreachable."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any, Final, Literal

from cachetools import TTLCache

from bot_ratelimit.algorithms.penalty import strike
from bot_ratelimit.algorithms.sliding_window import Log
from bot_ratelimit.algorithms.table import FUNCTIONS
from bot_ratelimit.algorithms.verdict import Step, Verdict
from bot_ratelimit.rules.checks import check_whole
from bot_ratelimit.rules.limit import Limit
from bot_ratelimit.storage.banlist import MemoryBanList
from bot_ratelimit.storage.base import ONCE_MS, Ask, Count, Op, Storage
from bot_ratelimit.storage.cache import BANNED, NORMAL, REFUSED, Entry, StateCache
from bot_ratelimit.storage.documents import MemoryDocuments
from bot_ratelimit.storage.leases import MemoryLeases
from bot_ratelimit.storage.tallies import MemoryTallies

_HIT: Final = Op.HIT


class MemoryStorage(Storage):
    """Keeps counts in this process, in a `cachetools` cache.

    ::

        Limiter(MemoryStorage(maxsize=100_000))

    Args:
        maxsize: The maximum number of keys, 1 or more; 10,000 by default. Above it the least
            recently used count is forgotten, so choose more than the number of users in one period.
            Counts of refused users are forgotten after all others, and bans last. The log says when
            a count that still holds is forgotten.
        clock: Returns seconds from any starting point; `time.monotonic` by default.
        wall_clock: Returns seconds since 1970, for windows that end with a day, week or month.

    Raises:
        ConfigError: `maxsize` is not a whole number from 1 up.
    """

    source: Literal["memory"] = "memory"

    def __init__(
        self,
        maxsize: int = 10_000,
        *,
        clock: Callable[[], float] = time.monotonic,
        wall_clock: Callable[[], float] = time.time,
    ) -> None:
        check_whole("maxsize", maxsize, 1)
        self._clock = clock
        self._wall_clock = wall_clock
        self._states = StateCache(maxsize, self._now)
        # The verdicts by token, and when they were decided.
        self._once: TTLCache[str, Any] = TTLCache(maxsize, ONCE_MS / 1_000, timer=clock)
        self._leases = MemoryLeases(clock)
        self._documents = MemoryDocuments(self._states, self._once)
        self._bans: dict[str, MemoryBanList] = {}
        self._tallies: dict[str, MemoryTallies] = {}

    async def ask(self, ask: Ask, *, timeout: float) -> list[Verdict]:
        """Answer; see `Storage.ask`. It never waits, so it never times out."""
        return self.answer(ask)

    def answer(self, ask: Ask) -> list[Verdict]:
        """Answer like `ask`, without a coroutine: this storage never waits."""
        counts, op, once = ask
        now = round(self._clock() * 1_000_000)
        if op is _HIT:
            return self._decide(counts, now) if once is None else self._shared(counts, once, now)
        if op is Op.PEEK:
            return self._decide(counts, now, peek=True)
        if op is Op.RESET:
            return [_step(count, self._states.pop(count.key, None), now, 0)[1] for count in counts]
        return [self._adjust(count, op, now) for count in counts]

    def hit(self, key: str, limit: Limit, cost: int) -> Verdict:
        """Decide about a hit on a single count, not of a calendar window, in half of the time."""
        states = self._states
        entry = states[key]
        now = round(self._clock() * 1_000_000)
        state = None if entry is None else entry.state
        state, verdict = FUNCTIONS[limit.algorithm].hit(state, now, limit, cost)
        retention = REFUSED if verdict[0] else NORMAL
        states.put(key, entry, state, _ends(state, now, verdict), retention)
        return verdict

    def _shared(self, counts: Sequence[Count], once: str, now: int) -> list[Verdict]:
        """The verdicts of the first hit with this token."""
        shared = self._once.get(once)
        if shared is not None:
            decided, verdicts = shared
            # In whole milliseconds, like the TTL of the verdict's key in Redis.
            passed_ms = now // 1_000 - decided // 1_000
            if passed_ms < ONCE_MS:
                return [_aged(verdict, passed_ms * 1_000) for verdict in verdicts]
        verdicts = self._decide(counts, now)
        later = [_shared_verdict(*each) for each in zip(counts, verdicts, strict=True)]
        self._once[once] = now, later
        return verdicts

    def server(self, counts: Sequence[Count]) -> str:
        return "memory"

    async def close(self) -> None:
        """Forget all counts."""
        self._states.clear()
        self._once.clear()

    def leases(self) -> MemoryLeases:
        return self._leases

    def bans(self, prefix: str) -> MemoryBanList:
        return self._bans.setdefault(prefix, MemoryBanList(self._clock))

    def documents(self) -> MemoryDocuments:
        return self._documents

    def tallies(self, prefix: str) -> MemoryTallies:
        return self._tallies.setdefault(prefix, MemoryTallies())

    def _decide(self, counts: Sequence[Count], now: int, *, peek: bool = False) -> list[Verdict]:
        """Decide about a hit, and charge it unless this is only a look at it."""
        counts = [self._dated(count) for count in counts]
        found = [self._states[count.key] for count in counts]
        steps = [
            _step(count, entry, now, 0 if count.penalty else count.cost)
            for count, entry in zip(counts, found, strict=True)
        ]
        refused = _refuses(counts, steps)
        verdicts = []
        for count, entry, step in zip(counts, found, steps, strict=True):
            is_charged = not peek
            if count.penalty is not None:
                if refused or count.penalty.imposed:
                    step = _step(count, entry, now, 1)
                else:
                    is_charged = False
            elif peek or (refused and not step[1].wait):
                wait, (state, verdict) = step[1].wait, _step(count, entry, now, 0)
                step = state, verdict._replace(wait=wait) if wait else verdict
                is_charged = False
            if is_charged:
                self._store(count, entry, step, now)
            verdicts.append(step[1])
        return verdicts

    def _adjust(self, count: Count, op: Op, now: int) -> Verdict:
        """Charge even above the limit, or refund."""
        count = self._dated(count)
        key, limit, cost = count[:3]
        functions, entry = FUNCTIONS[limit.algorithm], self._states[key]
        adjusted = functions.charge if op is Op.CHARGE else functions.refund
        state = adjusted(None if entry is None else entry.state, now, limit, cost)
        verdict = functions.hit(state, now, limit, 0)[1]
        verdict = verdict._replace(wait=functions.hit(state, now, limit, 1)[1].wait)
        if state is None:
            self._states.pop(key, None)
        else:
            self._store(count, entry, (state, verdict), now)
        return verdict

    def _store(self, count: Count, entry: Entry | None, step: Step, now: int) -> None:
        state, verdict = step
        wait, remaining, _ = verdict
        if count.penalty is not None:
            retention = REFUSED if remaining else BANNED
        else:
            retention = REFUSED if wait and not count.shadow else NORMAL
        self._states.put(count.key, entry, state, _ends(state, now, verdict), retention)

    def _dated(self, count: Count) -> Count:
        """The count with a limit that lasts until the end of the day, week or month, if it must."""
        limit = count.limit
        if not limit.zone:
            return count
        now = self._wall_clock()
        left_ms = limit.window_ends(now)[1] - int(now * 1_000)
        return count._replace(limit=Limit(limit.amount, left_ms / 1_000))

    def _now(self) -> int:
        return round(self._clock() * 1_000_000)


def _step(count: Count, entry: Entry | None, now: int, cost: int) -> Step:
    state = None if entry is None else entry.state
    if count.penalty is not None:
        return strike(state, now, count.limit, count.penalty, cost)
    return FUNCTIONS[count.limit.algorithm].hit(state, now, count.limit, cost)


def _ends(state: Any, now: int, verdict: Verdict) -> int:
    """When nothing in a state counts any more; a log may still count for a longer limit."""
    return state.ends_ms * 1_000 if type(state) is Log else now + verdict.reset


def _refuses(counts: Sequence[Count], steps: Sequence[Step]) -> bool:
    return any(step[1].wait and not count.shadow for count, step in zip(counts, steps, strict=True))


def _shared_verdict(count: Count, verdict: Verdict) -> Verdict:
    """The verdict for later hits with the same token: a ban that this hit caused refuses them."""
    banned = count.penalty is not None and not verdict.remaining
    return verdict._replace(wait=verdict.reset) if banned else verdict


def _aged(verdict: Verdict, passed: int) -> Verdict:
    wait, remaining, reset = verdict
    return Verdict(max(1, wait - passed) if wait else 0, remaining, max(0, reset - passed))
