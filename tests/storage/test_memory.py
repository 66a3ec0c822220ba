"""A full MemoryStorage: what is forgotten first, and what the log says."""

from __future__ import annotations

import logging
import random
from time import thread_time

import pytest

from bot_ratelimit import Limit, Limiter, MemoryStorage, Penalty, Rule, Subject
from bot_ratelimit.storage.base import Ask, Count, Op
from bot_ratelimit.testing import Clock
from tests.benches import charge

SIZE = 100


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def memory(clock: Clock) -> MemoryStorage:
    return MemoryStorage(SIZE, clock=clock)


def hit(memory: MemoryStorage, *charges: Count) -> bool:
    return not any(verdict.wait for verdict in memory.answer(Ask(charges)))


def strangers(memory: MemoryStorage, count: int = 10 * SIZE) -> None:
    for i in range(count):
        assert hit(memory, charge("2/h", f"stranger:{i}"))


def test_new_users_do_not_evict_a_refused_user(memory: MemoryStorage) -> None:
    """With ten times more new users than fit, a refused user stays refused. A shadow rule refuses
    nobody, so its counts are evicted like normal ones."""
    refused = [charge(f"1/h{algorithm}", algorithm) for algorithm in ("", " sliding", " bucket")]
    trial = charge("1/h", "trial", shadow=True)
    for one in (*refused, trial):
        assert [hit(memory, one), hit(memory, one)] == [True, False]
    strangers(memory)
    assert [hit(memory, one) for one in (*refused, trial)] == [False] * 3 + [True]


async def test_nobody_evicts_a_ban(clock: Clock) -> None:
    """A user who is on the way to a ban gets it, however many new users come in between, and then
    refused users do not end it."""
    limiter = Limiter(MemoryStorage(SIZE, clock=clock))
    rules = [Rule("1/h"), Penalty("3/h", "2h")]
    for _ in range(3):
        await limiter.hit(rules, Subject(42))
    for user in range(1_000, 1_000 + 3 * SIZE):
        await limiter.hit(rules, Subject(user))
    assert (await limiter.hit(rules, Subject(42))).banned
    for user in range(2_000, 2_000 + 3 * SIZE):
        for _ in range(2):
            await limiter.hit(rules, Subject(user))
    assert (await limiter.peek(rules, Subject(42))).banned


def test_who_is_evicted_first(
    memory: MemoryStorage, clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    """A refused user whose wait is over is forgotten before counts that still hold. If all are
    refused, the one that was silent longest is forgotten."""
    for i in range(SIZE // 2):
        for _ in range(2):
            hit(memory, charge("1/s", f"{i}"))
    clock.move(2)
    strangers(memory, SIZE)
    assert len(memory._states) == SIZE
    assert caplog.messages == []
    users = [charge("1/h", f"{i}") for i in range(SIZE + 1)]
    for one in users:
        for _ in range(2):
            hit(memory, one)
    assert [hit(memory, users[0]), hit(memory, users[-1])] == [True, False]


def test_the_log_says_that_counts_are_forgotten(
    memory: MemoryStorage, clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    """Once a minute, with the setting to raise; ended counts are dropped silently."""
    with caplog.at_level(logging.WARNING, "bot_ratelimit"):
        for i in range(3 * SIZE):
            hit(memory, charge("1/s", f"short:{i}"))
            clock.move(1.1 / SIZE)
        assert caplog.messages == []
        strangers(memory)
        clock.move(59)
        strangers(memory)
        assert len(caplog.messages) == 1
        clock.move(1)
        strangers(memory)
    assert len(caplog.messages) == 2
    for part in (f"({SIZE} keys)", "RATE_LIMIT_MEMORY_SIZE", "maxsize"):
        assert part in caplog.messages[0]


def test_a_shorter_limit_does_not_forget_a_log() -> None:
    """What a sliding window of an hour counts survives a refusal or refund by one of a second."""
    for last, remaining in ((Op.HIT, 0), (Op.REFUND, 1)):
        clock = Clock()
        memory, short, long = (
            MemoryStorage(clock=clock),
            charge("3/s sliding"),
            charge("5/h sliding"),
        )
        for one in (short, long, long, long, long):
            memory.answer(Ask([one]))
        memory.answer(Ask([short], last))
        clock.move(5)
        memory.answer(Ask([charge("1/s", "other")]))  # which removes what has ended
        [left] = memory.answer(Ask([long], Op.PEEK))
        assert left.remaining == remaining


def test_a_longer_limit_copies_no_counts(clock: Clock) -> None:
    """However many counts there are, the first hit of a longer limit is as fast as any."""
    memory = MemoryStorage(100_000, clock=clock)
    for i in range(50_000):
        hit(memory, charge("5/s", f"{i}"))
    longest = 0.0
    for limit in ("5/m", "5/h", "5/d", "5/30d", "5/366d"):
        before = thread_time()  # in which other processes take no part
        hit(memory, charge(limit, limit))
        longest = max(longest, thread_time() - before)
    assert longest < 0.02
    assert memory.answer(Ask([charge("5/s", "0")]))[0].remaining == 3  # nor is anybody forgotten


@pytest.mark.parametrize("refused", [False, True])
def test_the_last_key_may_expire_while_room_is_made(clock: Clock, refused: bool) -> None:
    """A full memory takes a new key at every moment at which its other key may expire."""
    for reading in range(1, 30):
        left = reading

        def later() -> float:
            nonlocal left
            left -= 1
            if not left:
                clock.move(100)
            return clock()

        left = 10_000
        memory = MemoryStorage(1, clock=later)
        for _ in range(1 + refused):
            memory.answer(Ask([charge("1/s", "old")]))
        left = reading
        assert not memory.answer(Ask([charge("1/s", "new")]))[0].wait


@pytest.mark.parametrize("seed", range(5))
def test_what_expires_is_not_kept(seed: int, clock: Clock) -> None:
    """Whatever the history, memory is bounded, and nothing that has ended stays."""
    choose = random.Random(seed)
    memory = MemoryStorage(20, clock=clock)
    states = memory._states
    for _ in range(3_000):
        limit = choose.choice(["1/s", "2/10s sliding", "3/minute bucket", "1/h"])
        penalty = Penalty("1/minute", "5m") if choose.random() < 0.2 else None
        key = f"{limit}:{choose.randrange(40)}"
        if choose.random() < 0.05:
            states.pop(key, None)
        elif penalty is None:
            memory.answer(Ask([charge(limit, key)]))
        else:
            count = Count(f"{key}:penalty", Limit.parse("1/minute"), penalty=penalty)
            memory.answer(Ask([charge(limit, key), count]))
        clock.move(choose.choice([0.0, 0.001, 0.1, 2.0, 70.0]))
        assert len(states) <= 20
        assert sum(map(len, states._used)) == len(states)
        assert len(states._ends) <= 2 * 20 + 1
    clock.move(10_000)
    states.expire()
    assert not any((len(states), *map(len, states._used), states._ends))
