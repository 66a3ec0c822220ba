"""MemoryStorage: counts in this process, for one instance or for when Redis is away."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any, Final, Literal

from cachetools import TTLCache

from bot_ratelimit.algorithms import ALGORITHMS, Step, Verdict, penalty
from bot_ratelimit.errors import ConfigError
from bot_ratelimit.storage.base import ONCE_MS, Charge


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
        self._once: TTLCache[str, tuple[int, list[Verdict]]] = self._cache(ONCE_MS * 1_000)

    async def hit(
        self, charges: Sequence[Charge], *, once: str | None = None, timeout: float
    ) -> list[Verdict]:
        """Decide and charge; see `Storage.hit`. Never waits, so never too late."""
        now = self._now()
        if once is None:
            return self._decide(charges, now)
        kept = self._once.get(once)
        if kept is not None:
            return [_later(verdict, now - kept[0]) for verdict in kept[1]]
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
            wait = self._step(charge, now, charge.cost).verdict.wait
            verdicts.append(self._step(charge, now, 0).verdict._replace(wait=wait))
        return verdicts

    async def reset(self, charges: Sequence[Charge], *, timeout: float) -> int:
        """Forget these keys; see `Storage.reset`."""
        now = self._now()
        found = sum(self._step(charge, now, 0).verdict.reset > 0 for charge in charges)
        for charge in charges:
            self._states.pop(charge.key, None)
        return found

    async def close(self) -> None:
        """Forget everything."""
        self._states.clear()
        self._once.clear()

    def _decide(self, charges: Sequence[Charge], now: int) -> list[Verdict]:
        if len(charges) == 1 and charges[0].penalty is None:  # nearly always
            charge = charges[0]
            step = self._step(charge, now, charge.cost)
            self._keep(charge, step)
            return [step.verdict]
        steps = [self._step(c, now, 0 if c.penalty else c.cost) for c in charges]
        refused = any(
            step.verdict.wait and not charge.shadow
            for step, charge in zip(steps, charges, strict=True)
        )
        verdicts = []
        for charge, step in zip(charges, steps, strict=True):
            if charge.penalty is not None:
                if refused:
                    step = self._step(charge, now, 1)
                    self._keep(charge, step)
            elif refused and not step.verdict.wait:
                step = self._step(charge, now, 0)
            else:
                self._keep(charge, step)
            verdicts.append(step.verdict)
        return verdicts

    def _step(self, charge: Charge, now: int, cost: int) -> Step:
        state = self._states.get(charge.key)
        if charge.penalty is not None:
            return penalty(state, now, charge.limit, charge.penalty, cost)
        return ALGORITHMS[charge.limit.algorithm](state, now, charge.limit, cost)

    def _keep(self, charge: Charge, step: Step) -> None:
        if step.verdict.reset > self._longest:
            # A TTLCache has one TTL for all. It grows in powers of two, so seldom.
            self._longest = 1 << step.verdict.reset.bit_length()
            longer = self._cache(self._longest)
            longer.update(self._states)
            self._states = longer
        self._states[charge.key] = step.state

    def _cache(self, ttl: int) -> TTLCache[str, Any]:
        return TTLCache(self._maxsize, ttl / 1_000_000, timer=self._clock)

    def _now(self) -> int:
        return round(self._clock() * 1_000_000)


def _afterwards(charge: Charge, verdict: Verdict) -> Verdict:
    """The verdict for those who share it: they find a ban that the hit itself brought on."""
    banned = charge.penalty is not None and not verdict.remaining
    return verdict._replace(wait=verdict.reset) if banned else verdict


def _later(verdict: Verdict, passed: int) -> Verdict:
    wait, remaining, reset = verdict
    return Verdict(max(1, wait - passed) if wait else 0, remaining, max(0, reset - passed))
