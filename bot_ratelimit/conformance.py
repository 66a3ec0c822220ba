"""check_storage: whether a custom storage keeps what `Storage` promises, for its author's tests."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from itertools import count as numbers
from typing import Final

from bot_ratelimit.algorithms.verdict import Verdict
from bot_ratelimit.rules.limit import Limit
from bot_ratelimit.storage.base import Ask, Count, Op, Storage

_TIMEOUT: Final = 5.0
_HOUR_US: Final = 3_600_000_000
_numbers: Final = numbers(1)


async def check_storage(
    storage: Storage, *, advance: Callable[[float], Awaitable[None]] | None = None
) -> None:
    """Check a storage with fixed windows: amounts, costs, several rules, peeks, resets, races.

    ::

        async def test_my_storage():
            await check_storage(MyStorage(), advance=asyncio.sleep)

    Keys begin with `conformance:` and differ in each call.

    Args:
        storage: The storage, which works.
        advance: Waits, or moves the storage's clock, for this many seconds (2 at most). Without it,
            it is not checked that windows end.

    Raises:
        AssertionError: A promise is broken; the text says which.
    """
    run = _Run(storage)
    for check in (
        run.counts_up_to_the_amount,
        run.charges_no_refused_cost,
        run.charges_all_rules_or_none,
        run.lets_shadow_rules_refuse_nobody,
        run.peeks_without_charging,
        run.charges_a_token_once,
        run.resets,
        run.counts_hits_at_the_same_time,
    ):
        await check()
    if advance is not None:
        await run.ends_windows(advance)


class _Run:
    def __init__(self, storage: Storage) -> None:
        self._storage = storage
        self._prefix = f"conformance:{id(storage):x}:{next(_numbers)}"

    async def _ask(
        self, *counts: Count, op: Op = Op.HIT, once: str | None = None
    ) -> Sequence[Verdict]:
        found = await self._storage.ask(Ask(counts, op, once), timeout=_TIMEOUT)
        _must(len(found) == len(counts), "an answer has one verdict for each count, in their order")
        return found

    def _count(self, name: str, limit: str, cost: int = 1, shadow: bool = False) -> Count:
        return Count(f"{self._prefix}:{name}", Limit.parse(limit), cost, shadow)

    async def counts_up_to_the_amount(self) -> None:
        count = self._count("amount", "2/h")
        for left in (1, 0):
            (verdict,) = await self._ask(count)
            _must(verdict.wait == 0, "a hit within the limit is allowed: its wait is 0")
            _must(verdict.remaining == left, "`remaining` is what can be charged after the hit")
            _must(0 < verdict.reset <= _HOUR_US, "`reset` is the rest of the window, above 0")
        (verdict,) = await self._ask(count)
        _must(0 < verdict.wait <= _HOUR_US, "a refused hit says how long to wait")
        (verdict,) = await self._ask(self._count("other", "2/h"))
        _must(verdict.wait == 0, "keys are counted apart")

    async def charges_no_refused_cost(self) -> None:
        await self._ask(self._count("cost", "3/h", 2))
        (verdict,) = await self._ask(self._count("cost", "3/h", 2))
        _must(verdict.wait > 0, "a hit of cost 2 does not fit into what is left, 1")
        (verdict,) = await self._ask(self._count("cost", "3/h", 1))
        _must(verdict.wait == 0, "a refused hit is not charged")

    async def charges_all_rules_or_none(self) -> None:
        full, free = self._count("full", "1/h"), self._count("free", "5/h")
        await self._ask(full)
        refused, allowed = await self._ask(full, free)
        _must((refused.wait > 0, allowed.wait) == (True, 0), "each rule has a verdict of its own")
        (verdict,) = await self._ask(free, op=Op.PEEK)
        _must(verdict.remaining == 5, "if one rule refuses, no other is charged")

    async def lets_shadow_rules_refuse_nobody(self) -> None:
        shadow, real = self._count("shadow", "1/h", shadow=True), self._count("real", "5/h")
        for left in (4, 3):
            _, verdict = await self._ask(shadow, real)
            _must(
                verdict.remaining == left, "a full shadow rule does not keep others from charging"
            )

    async def peeks_without_charging(self) -> None:
        for _ in range(3):
            (verdict,) = await self._ask(self._count("peek", "1/h"), op=Op.PEEK)
            _must((verdict.wait, verdict.remaining) == (0, 1), "a peek charges nothing")

    async def charges_a_token_once(self) -> None:
        count = self._count("album", "5/h")
        for _ in range(3):
            (verdict,) = await self._ask(count, once=f"{self._prefix}:token")
            _must(verdict.wait == 0, "hits with one token share its verdict")
        (verdict,) = await self._ask(count, op=Op.PEEK)
        _must(verdict.remaining == 4, "hits with one token are charged once")

    async def resets(self) -> None:
        count = self._count("reset", "1/h")
        await self._ask(count)
        never = self._count("never", "1/h sliding")  # a rule may have had another algorithm
        verdict, none = await self._ask(count, never, op=Op.RESET)
        _must(verdict.reset > 0 == none.reset, "a reset answers what there was")
        (verdict,) = await self._ask(count)
        _must(verdict.wait == 0, "after a reset everything can be charged again")

    async def counts_hits_at_the_same_time(self) -> None:
        count = self._count("race", "5/h")
        found = await asyncio.gather(*(self._ask(count) for _ in range(20)))
        allowed = sum(verdict.wait == 0 for (verdict,) in found)
        _must(allowed == 5, f"of 20 hits at the same time, 5/h allows 5, not {allowed}")

    async def ends_windows(self, advance: Callable[[float], Awaitable[None]]) -> None:
        count = self._count("window", "1/s")
        await self._ask(count)
        await advance(2)
        (verdict,) = await self._ask(count)
        _must(verdict.wait == 0, "a window ends after its period")


def _must(is_kept: bool, promise: str) -> None:
    if not is_kept:
        raise AssertionError(promise)
