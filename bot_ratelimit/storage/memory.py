"""MemoryStorage: counts in this process, for one instance or for when Redis is away."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any, Literal

from cachetools import TTLCache

from bot_ratelimit.algorithms import ALGORITHMS, Step, Verdict, penalty
from bot_ratelimit.errors import ConfigError
from bot_ratelimit.paying import CHARGES, REFUNDS
from bot_ratelimit.storage.base import ONCE_MS, Charge
from bot_ratelimit.storage.states import Held, Kept, States


class MemoryStorage:
    """A `cachetools.TTLCache` of states, moved on by the algorithms.

    Args:
        maxsize: The most keys kept. Beyond it the least recently used one is forgotten, and
            with it that subject's count: choose more than the users of one period. Counts of
            refused users are forgotten after all others, and bans last; the log says when a count
            that still holds is.
        clock: Seconds from any starting point.
    """

    source: Literal["memory"] = "memory"

    def __init__(
        self, maxsize: int = 10_000, *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        check_size("maxsize", maxsize)
        self._clock = clock
        self._states = States(maxsize, ONCE_MS * 1_000, clock)
        # Verdicts by token, and the resets that may have come after them, by key and in order.
        self._once: TTLCache[str, Any] = TTLCache(maxsize, ONCE_MS / 1_000, timer=clock)
        self._resets: TTLCache[str, int] = TTLCache(maxsize, ONCE_MS / 1_000, timer=clock)
        self._reset_count = 0

    async def hit(
        self, charges: Sequence[Charge], *, once: str | None = None, timeout: float
    ) -> list[Verdict]:
        """Decide and charge; see `Storage.hit`. Never waits, so never too late."""
        return self.decide(charges, once)

    def decide(self, charges: Sequence[Charge], once: str | None = None) -> list[Verdict]:
        """The same as `hit`, without the coroutine: this storage never has to be awaited."""
        now = self._now()
        if once is None:
            return self._decide(charges, now)
        shared = self._once.get(once)
        if shared is not None:
            resets, decided, verdicts = shared
            # The cache counts in floats, which may keep it a microsecond too long.
            if now - decided < ONCE_MS * 1_000 and not self._was_reset(charges, resets):
                return [_later(verdict, now - decided) for verdict in verdicts]
        verdicts = self._decide(charges, now)
        self._once[once] = (
            self._reset_count,
            now,
            [_afterwards(*each) for each in zip(charges, verdicts, strict=True)],
        )
        return verdicts

    async def peek(self, charges: Sequence[Charge], *, timeout: float) -> list[Verdict]:
        """Look without charging; see `Storage.peek`."""
        return self._look(charges, self._now())

    async def charge(self, charges: Sequence[Charge], *, timeout: float) -> list[Verdict]:
        """Charge whatever is left; see `Storage.charge`."""
        now = self._now()
        return [self._paid(each, CHARGES[each.limit.algorithm], now, each.cost) for each in charges]

    async def refund(
        self, charges: Sequence[Charge], *, age_us: int = 0, timeout: float
    ) -> list[Verdict]:
        """Give back; see `Storage.refund`."""
        now = self._now()
        return [
            self._paid(each, REFUNDS[each.limit.algorithm], now, each.cost, age_us)
            for each in charges
        ]

    async def reset(self, charges: Sequence[Charge], *, timeout: float) -> int:
        """Forget these keys; see `Storage.reset`."""
        now = self._now()
        found = 0
        self._reset_count += 1
        for charge in charges:
            self._resets[charge.key] = self._reset_count
            found += _step(charge, self._states.pop(charge.key), now, 0)[1].reset > 0
        return found

    def server(self, charges: Sequence[Charge]) -> str:
        """This process; see `Storage.server`."""
        return "memory"

    def open(self) -> None:
        """There is nothing to open; see `Storage.open`."""

    async def close(self) -> None:
        """Forget everything."""
        self._states.clear()
        self._once.clear()
        self._resets.clear()

    def _decide(self, charges: Sequence[Charge], now: int) -> list[Verdict]:
        if len(charges) == 1 and charges[0].penalty is None:  # nearly always
            key, limit, cost, _, _ = charge = charges[0]
            kept = self._states.get(key)
            state = None if kept is None else kept.state
            step = ALGORITHMS[limit.algorithm](state, now, limit, cost)
            self._keep(charge, kept, step, now)
            return [step[1]]
        found = [self._states.get(charge.key) for charge in charges]
        steps = [
            _step(charge, kept, now, 0 if charge.penalty else charge.cost)
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
                    step = _step(charge, kept, now, 1)
                    self._keep(charge, kept, step, now)
            elif refused and not step[1].wait:
                step = _step(charge, kept, now, 0)
            else:
                self._keep(charge, kept, step, now)
            verdicts.append(step[1])
        return verdicts

    def _look(self, charges: Sequence[Charge], now: int) -> list[Verdict]:
        found = [self._states.get(charge.key) for charge in charges]
        waits = [
            _step(charge, kept, now, 0 if charge.penalty else charge.cost)[1].wait
            for charge, kept in zip(charges, found, strict=True)
        ]
        refused = any(w and not c.shadow for w, c in zip(waits, charges, strict=True))
        return [
            # Of a penalty, what it would say after counting this refusal.
            _step(charge, kept, now, int(refused))[1]
            if charge.penalty
            else _step(charge, kept, now, 0)[1]._replace(wait=wait)
            for charge, kept, wait in zip(charges, found, waits, strict=True)
        ]

    def _paid(self, charge: Charge, pay: Callable[..., Any], now: int, *arguments: int) -> Verdict:
        kept = self._states.get(charge.key)
        before = None if kept is None else kept.state
        state = pay(before, now, charge.limit, *arguments)
        algorithm = ALGORITHMS[charge.limit.algorithm]
        verdict = algorithm(state, now, charge.limit, 0)[1]
        verdict = verdict._replace(wait=algorithm(state, now, charge.limit, 1)[1].wait)
        if state is None:
            self._states.pop(charge.key)
        elif state is not before:
            self._keep(charge, kept, (state, verdict), now)
        return verdict

    def _keep(self, charge: Charge, kept: Kept | None, step: Step, now: int) -> None:
        state, (wait, remaining, reset) = step
        if charge.penalty is not None:
            held = Held.NOT if remaining else Held.BANNED
        else:
            held = Held.REFUSED if wait and not charge.shadow else Held.NOT
        if kept is not None and state is kept.state:
            self._states.keep(charge.key, kept, state, kept.ends, held)
        else:
            self._states.keep(charge.key, kept, state, now + reset, held)

    def _was_reset(self, charges: Sequence[Charge], since: int) -> bool:
        return any((self._resets.get(charge.key) or 0) > since for charge in charges)

    def _now(self) -> int:
        return round(self._clock() * 1_000_000)


def _step(charge: Charge, kept: Kept | None, now: int, cost: int) -> Step:
    state = None if kept is None else kept.state
    if charge.penalty is not None:
        return penalty(state, now, charge.limit, charge.penalty, cost)
    return ALGORITHMS[charge.limit.algorithm](state, now, charge.limit, cost)


def _afterwards(charge: Charge, verdict: Verdict) -> Verdict:
    """The verdict for those who share it: they find a ban that the hit itself brought on."""
    banned = charge.penalty is not None and not verdict.remaining
    return verdict._replace(wait=verdict.reset) if banned else verdict


def _later(verdict: Verdict, passed: int) -> Verdict:
    wait, remaining, reset = verdict
    return Verdict(max(1, wait - passed) if wait else 0, remaining, max(0, reset - passed))


def check_size(name: str, value: object) -> None:
    """Raise ConfigError, with the parameter's name, unless so many keys can be kept."""
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ConfigError(f"{name}={value!r}: expected a whole number from 1 up")
