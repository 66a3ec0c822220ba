"""MemoryStorage: counts in this process, for one instance or for when Redis is away."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any, Final, Literal

from cachetools import TTLCache

from bot_ratelimit.algorithms import ALGORITHMS, Step, Verdict, penalty
from bot_ratelimit.errors import ConfigError
from bot_ratelimit.storage.base import ONCE_MS, Charge


class _Kept:
    """A state, and until when the cache keeps it, in microseconds."""

    __slots__ = ("state", "until")

    def __init__(self, state: Any, until: int) -> None:
        self.state = state
        self.until = until


class _States(TTLCache[str, Any]):
    """What is kept, by key; None where nothing is, without an exception for it."""

    def __missing__(self, key: str) -> None:
        return None


class MemoryStorage:
    """A `cachetools.TTLCache` of states, moved on by the algorithms.

    Args:
        maxsize: The most keys kept. Beyond it the least recently used one is forgotten, and
            with it that subject's count: choose more than the users of one period.
        clock: Seconds from any starting point.
    """

    source: Final[Literal["memory"]] = "memory"

    def __init__(
        self, maxsize: int = 10_000, *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        if isinstance(maxsize, bool) or not isinstance(maxsize, int) or maxsize < 1:
            raise ConfigError(f"maxsize={maxsize!r}: expected a whole number from 1 up")
        self._maxsize = maxsize
        self._clock = clock
        self._longest = ONCE_MS * 1_000  # microseconds; the TTL of the cache of states
        self._states = self._cache(self._longest)
        self._once = self._cache(ONCE_MS * 1_000)

    async def hit(
        self, charges: Sequence[Charge], *, once: str | None = None, timeout: float
    ) -> list[Verdict]:
        """Decide and charge; see `Storage.hit`. Never waits, so never too late."""
        return self.decide(charges, once)

    def decide(self, charges: Sequence[Charge], once: str | None = None) -> list[Verdict]:
        """`hit`, for who knows that this storage need not be awaited."""
        now = self._now()
        if once is None:
            return self._decide(charges, now)
        shared = self._once[once]
        if shared is not None:
            return [_later(verdict, now - shared[0]) for verdict in shared[1]]
        verdicts = self._decide(charges, now)
        self._once[once] = (
            now,
            [_afterwards(*each) for each in zip(charges, verdicts, strict=True)],
        )
        return verdicts

    async def peek(self, charges: Sequence[Charge], *, timeout: float) -> list[Verdict]:
        """Look without charging; see `Storage.peek`."""
        now = self._now()
        verdicts = []
        for charge in charges:
            kept = self._states[charge.key]
            wait = self._step(charge, kept, now, charge.cost)[1].wait
            verdicts.append(self._step(charge, kept, now, 0)[1]._replace(wait=wait))
        return verdicts

    async def reset(self, charges: Sequence[Charge], *, timeout: float) -> int:
        """Forget these keys; see `Storage.reset`."""
        now = self._now()
        found = 0
        for charge in charges:
            kept = self._states.pop(charge.key, None)
            found += self._step(charge, kept, now, 0)[1].reset > 0
        return found

    async def close(self) -> None:
        """Forget everything."""
        self._states.clear()
        self._once.clear()

    def _decide(self, charges: Sequence[Charge], now: int) -> list[Verdict]:
        if len(charges) == 1 and charges[0].penalty is None:  # nearly always
            key, limit, cost, _, _ = charges[0]
            kept = self._states[key]
            state = None if kept is None else kept.state
            step = ALGORITHMS[limit.algorithm](state, now, limit, cost)
            self._keep(key, kept, step, now)
            return [step[1]]
        found = [self._states[charge.key] for charge in charges]
        steps = [
            self._step(charge, kept, now, 0 if charge.penalty else charge.cost)
            for charge, kept in zip(charges, found, strict=True)
        ]
        refused = any(
            verdict.wait and not charge.shadow
            for (_, verdict), charge in zip(steps, charges, strict=True)
        )
        verdicts = []
        for charge, kept, step in zip(charges, found, steps, strict=True):
            if charge.penalty is not None:
                if refused or charge.penalty.imposed:
                    step = self._step(charge, kept, now, 1)
                    self._keep(charge.key, kept, step, now)
            elif refused and not step[1].wait:
                step = self._step(charge, kept, now, 0)
            else:
                self._keep(charge.key, kept, step, now)
            verdicts.append(step[1])
        return verdicts

    def _step(self, charge: Charge, kept: _Kept | None, now: int, cost: int) -> Step:
        state = None if kept is None else kept.state
        if charge.penalty is not None:
            return penalty(state, now, charge.limit, charge.penalty, cost)
        return ALGORITHMS[charge.limit.algorithm](state, now, charge.limit, cost)

    def _keep(self, key: str, kept: _Kept | None, step: Step, now: int) -> None:
        state, (_, _, reset) = step
        if kept is not None and now + reset <= kept.until:
            kept.state = state  # far cheaper than to put it into the cache anew
            return
        if reset > self._longest:
            # A TTLCache has one TTL for all. It grows in powers of two, so seldom.
            self._longest = 1 << reset.bit_length()
            longer = self._cache(self._longest)
            longer.update(self._states)
            self._states = longer
        self._states[key] = _Kept(state, now + self._longest)

    def _cache(self, ttl: int) -> _States:
        return _States(self._maxsize, ttl / 1_000_000, timer=self._clock)

    def _now(self) -> int:
        return round(self._clock() * 1_000_000)


def _afterwards(charge: Charge, verdict: Verdict) -> Verdict:
    """The verdict for those who share it: they find a ban that the hit itself brought on."""
    banned = charge.penalty is not None and not verdict.remaining
    return verdict._replace(wait=verdict.reset) if banned else verdict


def _later(verdict: Verdict, passed: int) -> Verdict:
    wait, remaining, reset = verdict
    return Verdict(max(1, wait - passed) if wait else 0, remaining, max(0, reset - passed))
