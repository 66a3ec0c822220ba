"""bot_ratelimit.testing works as documented."""

from __future__ import annotations

import asyncio
import re
import time
from textwrap import dedent
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import bot_ratelimit
from bot_ratelimit import (
    ConfigError,
    Limit,
    Limiter,
    MemoryStorage,
    Rule,
    StorageError,
    Subject,
    testing,
)
from bot_ratelimit.storage.base import Ask, Count, Op
from bot_ratelimit.testing import Clock, FlakyStorage
from tests.benches import reset
from tests.tables import table

from .incoming.updates import bare, listen

ANNA = Subject(user=42)
CHARGE = Count("bot:ratelimit:42", Limit(1, 10))


async def test_the_examples_of_the_docstring() -> None:
    """The second message is refused, and ten seconds later one is handled again.

    Without Redis the bot answers: everything is handled while the storage fails.
    """
    example = dedent((testing.__doc__ or "").partition("::\n")[2])
    seen = iter(["[True, False, False]", "[True, False, False]", "[True, True, True]"])
    source = re.sub(r"\.\.\. .*", lambda _: f"assert await send(*'abc') == {next(seen)}", example)
    for name in ("test_second_message_is_refused", "test_bot_answers_without_redis"):
        bot = bare()
        listen(bot, "message")
        names = {**vars(testing), **vars(bot_ratelimit), "dp": bot.dispatcher, "send": bot.send}
        exec(source, names)
        await names[name]()
    assert [*seen] == []


@given(
    period_ms=st.integers(1, 10_000_000),
    start=st.floats(0, 1e9),
    algorithm=st.sampled_from(["", " sliding", " bucket"]),
    amount=st.integers(1, 5),
)
def test_moving_by_retry_after_is_enough(
    period_ms: int, start: float, algorithm: str, amount: int
) -> None:
    """After moving the clock by `retry_after` the next event is always handled."""

    async def run() -> None:
        clock = Clock(start)
        limiter = Limiter(MemoryStorage(clock=clock))
        rule = Rule(Limit.parse(f"{amount}/{period_ms}ms{algorithm}"))
        for _ in range(3):
            while (decision := await limiter.hit(rule, ANNA)).allowed:
                pass
            clock.move(decision.retry_after)
            assert (await limiter.peek(rule, ANNA)).allowed

    asyncio.run(run())


@table("limit", ["1/s", "1/s sliding", "1/s bucket"])
async def test_many_small_moves_make_a_large_one(limit: str) -> None:
    """The clock stands still; ten times a tenth of a second is a second, despite floats."""
    for parts in (3, 10, 1_000):
        clock = Clock(5)
        assert clock() == clock() == clock.now == 5
        limiter = Limiter(MemoryStorage(clock=clock))
        await limiter.hit(limit, ANNA)
        for _ in range(parts):
            clock.move(1 / parts)
        assert (await limiter.hit(limit, ANNA)).allowed


async def test_the_clock_of_a_limiter_times_outages() -> None:
    """As the limiter's clock, it also moves the pauses between attempts."""
    clock, storage = Clock(), FlakyStorage()
    limiter = Limiter(storage, clock=clock, on_error="deny")
    storage.fail()
    for _ in range(20):
        await limiter.hit("1/m", ANNA)
    assert storage.calls < 20  # it is left alone
    storage.heal()
    assert not (await limiter.hit("1/m", ANNA)).allowed
    clock.move(3_600)
    decision = await limiter.hit("1/m", ANNA)
    assert (decision.source, decision.allowed) == ("memory", True)  # what failed was not charged


async def test_a_storage_that_fails_or_hangs() -> None:
    """After `fail` every call raises its error, after `hang` a StorageError after its time-out.

    The last call decides; `heal` ends both, and the counts are the old ones.
    """
    storage, error = FlakyStorage(), ConfigError("NOPERM")

    async def ask(op: Op = Op.HIT) -> Any:
        return await storage.ask(Ask([CHARGE], op), timeout=0.01)

    await ask()
    storage.fail()
    for _ in range(2):
        with pytest.raises(StorageError):
            await ask()
    storage.hang()
    started = time.monotonic()
    with pytest.raises(StorageError):
        await ask()
    assert 0.009 <= time.monotonic() - started < 1
    storage.fail(error)
    with pytest.raises(ConfigError) as raised:
        await ask()
    assert raised.value is error
    storage.heal()
    storage.heal()
    assert (await ask(Op.PEEK))[0].remaining == 0
    assert storage.calls == 6


async def test_the_wrapped_storage() -> None:
    """It wraps any storage, with its answers, source, tokens and `close`."""
    inner = MemoryStorage()
    storage = FlakyStorage(inner)
    assert storage.source == "memory"
    for _ in range(2):
        assert (await storage.ask(Ask([CHARGE], once="album"), timeout=1))[0].wait == 0
    assert (await inner.ask(Ask([CHARGE], Op.PEEK), timeout=1))[0].remaining == 0
    assert await reset(storage, CHARGE) == 1
    await storage.ask(Ask([CHARGE]), timeout=1)
    assert not storage.closed
    await storage.close()
    assert storage.closed
    assert (await inner.ask(Ask([CHARGE], Op.PEEK), timeout=1))[0].remaining == 1  # closed as well
