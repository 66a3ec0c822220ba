"""bot_ratelimit.testing works as documented."""

from __future__ import annotations

import asyncio
import inspect
import time
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bot_ratelimit import (
    ConfigError,
    Decision,
    Limit,
    Limiter,
    MemoryStorage,
    Penalty,
    RateLimitMiddleware,
    Rule,
    StorageError,
    Subject,
    testing,
)
from bot_ratelimit.storage.base import Ask, Count, Op, Storage
from bot_ratelimit.testing import Clock, FlakyStorage
from tests.benches import reset

from .incoming.support import Instance
from .incoming.updates import bare, listen

ANNA = Subject(user=42)
CHARGE = Count("bot:ratelimit:42", Limit(1, 10))


async def test_the_first_example() -> None:
    """The second message is refused, and ten seconds later one is handled again."""
    clock = Clock()
    limiter = Limiter(MemoryStorage(clock=clock))
    bot = bare()
    dp = bot.dispatcher
    dp.message.middleware(RateLimitMiddleware("1/10s", limiter=limiter))
    listen(bot, "message")
    assert await bot.send(*"ab") == [True, False]
    clock.move(10)
    assert await bot.send(*"ab") == [True, False]


async def test_the_second_example() -> None:
    """Without Redis the bot answers: everything is handled while the storage fails."""
    storage = FlakyStorage()
    bot = bare()
    dp = bot.dispatcher
    dp.message.middleware(RateLimitMiddleware("1/10s", limiter=Limiter(storage)))
    listen(bot, "message")
    storage.fail()
    assert await bot.send(*"abc") == [True, True, True]


def test_the_examples_in_the_docstring_are_these() -> None:
    """The examples of the module consist of lines of the two tests above."""
    example = (testing.__doc__ or "").partition("::\n")[2]
    lines = [line.partition("#")[0].strip() for line in example.splitlines()]
    code = [line for line in lines if line and line != "..." and not line.startswith("async def")]
    tested = (test_the_first_example, test_the_second_example)
    source = "".join(inspect.getsource(test) for test in tested)
    assert example.count("async def") == len(tested)
    assert code
    for line in code:
        assert line in source


def test_a_clock_moves_only_by_hand() -> None:
    """It stands still, and `move` adds seconds."""
    clock = Clock()
    assert clock() == clock() == clock.now
    before = clock()
    clock.move(2.5)
    assert clock() - before == 2.5
    assert Clock(5)() == 5


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


@pytest.mark.parametrize("limit", ["1/s", "1/s sliding", "1/s bucket"])
async def test_many_small_moves_make_a_large_one(limit: str) -> None:
    """Ten times a tenth of a second is a second, despite floats."""
    for parts in (3, 10, 1_000):
        clock = Clock()
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
    assert (await limiter.hit("1/m", ANNA)).source == "memory"


async def ask(storage: Storage, op: Op = Op.HIT) -> Any:
    return await storage.ask(Ask([CHARGE], op), timeout=0.01)


async def test_a_storage_that_fails() -> None:
    """After `fail` every call raises a StorageError; after `heal` it works with its old counts."""
    storage = FlakyStorage()
    await ask(storage)
    storage.fail()
    for _ in range(2):
        with pytest.raises(StorageError):
            await ask(storage)
    storage.heal()
    assert (await ask(storage, Op.PEEK))[0].remaining == 0
    assert storage.calls == 4


async def test_a_storage_that_hangs() -> None:
    """After `hang` every call raises a StorageError exactly after its time-out."""
    storage = FlakyStorage()
    storage.hang()
    started = time.monotonic()
    with pytest.raises(StorageError):
        await ask(storage)
    assert 0.009 <= time.monotonic() - started < 1
    storage.heal()
    assert await ask(storage)


async def test_the_last_call_decides() -> None:
    """`fail` after `hang` raises its error, and the other way round; `heal` ends both."""
    storage, error = FlakyStorage(), ConfigError("NOPERM")
    storage.hang()
    storage.fail(error)
    with pytest.raises(ConfigError) as raised:
        await ask(storage)
    assert raised.value is error
    storage.hang()
    with pytest.raises(StorageError):
        await ask(storage)
    storage.heal()
    storage.heal()
    assert await ask(storage)


async def test_a_failing_storage_charges_nothing() -> None:
    """A call that failed is not charged."""
    storage = FlakyStorage()
    limiter = Limiter(storage)
    storage.fail()
    assert (await limiter.hit("1/m", ANNA)).source == "policy"
    storage.heal()
    decision: Decision = await limiter.hit("1/m", ANNA)
    assert (decision.source, decision.allowed) == ("memory", True)


async def test_the_wrapped_storage() -> None:
    """It wraps any storage, with its answers, source, tokens and `close`."""
    inner = MemoryStorage()
    storage = FlakyStorage(inner)
    assert storage.source == "memory"
    await storage.ask(Ask([CHARGE], once="album"), timeout=1)
    assert (await storage.ask(Ask([CHARGE], once="album"), timeout=1))[0].wait == 0
    assert (await inner.ask(Ask([CHARGE], Op.PEEK), timeout=1))[0].remaining == 0
    assert await reset(storage, *[CHARGE]) == 1
    await storage.ask(Ask([CHARGE]), timeout=1)
    assert storage.calls == 4
    assert not storage.closed
    await storage.close()
    assert storage.closed
    assert (await inner.ask(Ask([CHARGE], Op.PEEK), timeout=1))[0].remaining == 1  # closed as well


async def test_a_test_of_a_bot_with_a_ban() -> None:
    """A complete test as users would write it: flood, ban, an hour later."""
    clock = Clock()
    limiter = Limiter(MemoryStorage(clock=clock), clock=clock)
    bot = Instance(RateLimitMiddleware("1/s", limiter=limiter, penalty=Penalty("5/m", "1h")))
    assert await bot.send(*"abcdefg") == [True] + [False] * 6
    clock.move(1)
    assert await bot.send("h") == [False]
    clock.move(3_600)
    assert await bot.send("i") == [True]
