"""MemoryStorage: counts in this process, for a single instance or while Redis is unreachable."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any, Literal

from cachetools import TTLCache

from bot_ratelimit.algorithms.adjustments import CHARGES, REFUNDS
from bot_ratelimit.algorithms.algorithms import ALGORITHMS, Step, Verdict, penalty
from bot_ratelimit.errors import ConfigError
from bot_ratelimit.storage.banlist import MemoryBanList
from bot_ratelimit.storage.base import ONCE_MS, Ask, Count, Op, Storage
from bot_ratelimit.storage.documents import Goes, MemoryDocuments
from bot_ratelimit.storage.leases import MemoryLeases
from bot_ratelimit.storage.state_cache import Entry, Retention, StateCache
from bot_ratelimit.storage.tallies import MemoryTallies


class MemoryStorage(Storage):
    """Keeps counts in this process, in `cachetools` caches.

    ::

        Limiter(MemoryStorage(maxsize=100_000))

    Args:
        maxsize: The maximum number of keys, 1 or more; 10,000 by default. Above it the least
            recently used count is forgotten, so choose more than the number of users in one period.
            Counts of refused users are forgotten after all others, and bans last. The log says when
            a count that still holds is forgotten.
        clock: Returns seconds from any starting point; `time.monotonic` by default.

    Raises:
        ConfigError: `maxsize` is not a whole number from 1 up.
    """

    source: Literal["memory"] = "memory"

    def __init__(
        self, maxsize: int = 10_000, *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        check_size("maxsize", maxsize)
        self._clock = clock
        self._states = StateCache(maxsize, ONCE_MS * 1_000, clock)
        # Verdicts by token. Resets are numbered and kept by key: a verdict that is older than a
        # reset of its key is not used again.
        self._once: TTLCache[str, Any] = TTLCache(maxsize, ONCE_MS / 1_000, timer=clock)
        self._resets: TTLCache[str, int] = TTLCache(maxsize, ONCE_MS / 1_000, timer=clock)
        self._reset_count = 0
        self._leases = MemoryLeases(clock)
        self._documents = MemoryDocuments(self._forget)
        self._bans: dict[str, MemoryBanList] = {}
        self._tallies: dict[str, MemoryTallies] = {}

    async def ask(self, ask: Ask, *, timeout: float) -> list[Verdict]:
        """Answer; see `Storage.ask`. It never waits, so it never times out."""
        return self.answer(ask)

    def answer(self, ask: Ask) -> list[Verdict]:
        """Answer like `ask`, without a coroutine: this storage never waits."""
        counts, op, once, age_us = ask
        if op is Op.HIT:
            return self.decide(counts, once)
        now = self._now()
        if op is Op.PEEK:
            return self._peek(counts, now)
        if op is Op.RESET:
            return self._reset(counts, now)
        if op is Op.CHARGE:
            return [
                self._adjusted(each, CHARGES[each.limit.algorithm], now, each.cost)
                for each in counts
            ]
        return [
            self._adjusted(each, REFUNDS[each.limit.algorithm], now, each.cost, age_us)
            for each in counts
        ]

    def decide(self, charges: Sequence[Count], once: str | None = None) -> list[Verdict]:
        """Decide about a hit and charge it."""
        now = self._now()
        if once is None:
            return self._decide(charges, now)
        shared = self._once.get(once)
        if shared is not None:
            resets, decided, verdicts = shared
            # In whole milliseconds, like the TTL of the verdict's key in Redis.
            passed_ms = now // 1_000 - decided // 1_000
            if passed_ms < ONCE_MS and not self._was_reset(charges, resets):
                return [_aged(verdict, passed_ms * 1_000) for verdict in verdicts]
        verdicts = self._decide(charges, now)
        self._once[once] = (
            self._reset_count,
            now,
            [_shared_verdict(*each) for each in zip(charges, verdicts, strict=True)],
        )
        return verdicts

    def _reset(self, counts: Sequence[Count], now: int) -> list[Verdict]:
        self._reset_count += 1
        found = []
        for count in counts:
            self._resets[count.key] = self._reset_count
            found.append(_step_of(count, self._states.pop(count.key), now, 0)[1])
        return found

    def server(self, charges: Sequence[Count]) -> str:
        """This process; see `Storage.server`."""
        return "memory"

    async def close(self) -> None:
        """Forget all counts."""
        self._states.clear()
        self._once.clear()
        self._resets.clear()

    def leases(self) -> MemoryLeases:
        """See `Storage.leases`."""
        return self._leases

    def bans(self, prefix: str) -> MemoryBanList:
        """See `Storage.bans`."""
        return self._bans.setdefault(prefix, MemoryBanList(self._clock))

    def documents(self) -> MemoryDocuments:
        """See `Storage.documents`."""
        return self._documents

    def tallies(self, prefix: str) -> MemoryTallies:
        """See `Storage.tallies`."""
        return self._tallies.setdefault(prefix, MemoryTallies())

    def _forget(self, goes: Goes) -> int:
        doomed = [key for key in self._states if goes(key)]
        for key in doomed:
            self._states.pop(key)
        for key in [key for key in self._once if goes(key)]:
            self._once.pop(key, None)
        return len(doomed)

    def _decide(self, charges: Sequence[Count], now: int) -> list[Verdict]:
        if len(charges) == 1 and charges[0].penalty is None:  # nearly always
            key, limit, cost, _, _ = charge = charges[0]
            entry = self._states.get(key)
            state = None if entry is None else entry.state
            step = ALGORITHMS[limit.algorithm](state, now, limit, cost)
            self._store(charge, entry, step, now)
            return [step[1]]
        found = [self._states.get(charge.key) for charge in charges]
        steps = [
            _step_of(charge, entry, now, 0 if charge.penalty else charge.cost)
            for charge, entry in zip(charges, found, strict=True)
        ]
        refused = any(
            verdict.wait and not charge.shadow
            for (_, verdict), charge in zip(steps, charges, strict=True)
        )
        verdicts = []
        for charge, entry, step in zip(charges, found, steps, strict=True):
            if charge.penalty is not None:
                if refused or charge.penalty.imposed:
                    step = _step_of(charge, entry, now, 1)
                    self._store(charge, entry, step, now)
            elif refused and not step[1].wait:
                step = _step_of(charge, entry, now, 0)
            else:
                self._store(charge, entry, step, now)
            verdicts.append(step[1])
        return verdicts

    def _peek(self, charges: Sequence[Count], now: int) -> list[Verdict]:
        found = [self._states.get(charge.key) for charge in charges]
        waits = [
            _step_of(charge, entry, now, 0 if charge.penalty else charge.cost)[1].wait
            for charge, entry in zip(charges, found, strict=True)
        ]
        refused = any(w and not c.shadow for w, c in zip(waits, charges, strict=True))
        return [
            # For a penalty, the verdict after counting this refusal.
            _step_of(charge, entry, now, int(refused))[1]
            if charge.penalty
            else _step_of(charge, entry, now, 0)[1]._replace(wait=wait)
            for charge, entry, wait in zip(charges, found, waits, strict=True)
        ]

    def _adjusted(
        self, charge: Count, adjust: Callable[..., Any], now: int, *arguments: int
    ) -> Verdict:
        entry = self._states.get(charge.key)
        before = None if entry is None else entry.state
        state = adjust(before, now, charge.limit, *arguments)
        algorithm = ALGORITHMS[charge.limit.algorithm]
        verdict = algorithm(state, now, charge.limit, 0)[1]
        verdict = verdict._replace(wait=algorithm(state, now, charge.limit, 1)[1].wait)
        if state is None:
            self._states.pop(charge.key)
        elif state is not before:
            self._store(charge, entry, (state, verdict), now)
        return verdict

    def _store(self, charge: Count, entry: Entry | None, step: Step, now: int) -> None:
        state, (wait, remaining, reset) = step
        if charge.penalty is not None:
            retention = Retention.REFUSED if remaining else Retention.BANNED
        else:
            retention = Retention.REFUSED if wait and not charge.shadow else Retention.NORMAL
        if entry is not None and state is entry.state:
            self._states.put(charge.key, entry, state, now, entry.ends, retention)
        else:
            self._states.put(charge.key, entry, state, now, now + reset, retention)

    def _was_reset(self, charges: Sequence[Count], since: int) -> bool:
        return any((self._resets.get(charge.key) or 0) > since for charge in charges)

    def _now(self) -> int:
        return round(self._clock() * 1_000_000)


def _step_of(charge: Count, entry: Entry | None, now: int, cost: int) -> Step:
    state = None if entry is None else entry.state
    if charge.penalty is not None:
        return penalty(state, now, charge.limit, charge.penalty, cost)
    return ALGORITHMS[charge.limit.algorithm](state, now, charge.limit, cost)


def _shared_verdict(charge: Count, verdict: Verdict) -> Verdict:
    """The verdict for later hits with the same token: a ban that this hit caused refuses them."""
    banned = charge.penalty is not None and not verdict.remaining
    return verdict._replace(wait=verdict.reset) if banned else verdict


def _aged(verdict: Verdict, passed: int) -> Verdict:
    wait, remaining, reset = verdict
    return Verdict(max(1, wait - passed) if wait else 0, remaining, max(0, reset - passed))


def check_size(name: str, value: object) -> None:
    """Raise ConfigError, with the name of the parameter, unless this is a valid number of keys."""
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ConfigError(f"{name}={value!r}: expected a whole number from 1 up")
