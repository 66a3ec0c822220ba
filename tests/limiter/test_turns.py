"""Turns: a process leaves slots to other processes from time to time, in moved time."""

from __future__ import annotations

import asyncio

import redis.asyncio as aioredis

from bot_ratelimit import Concurrency, Limiter, RedisStorage, Subject
from bot_ratelimit.limiter.turns import PAUSE, Turns
from tests.benches import TIMEOUT

US = Subject(user=42)
REPORTS = Concurrency(1, name="report")


def take(turns: Turns, now: float, until: float) -> float:
    """Take and release a slot again and again."""
    while now < until:
        turns.granted("key", now)
        now += 0.1
        turns.released("key", now)
    return now


def test_a_turn_ends_and_doubles_if_nobody_else_wants_the_slots() -> None:
    """A process pauses after 1, 2, 4, 8, 16, 16 ... seconds, so alone it loses 4 % at most."""
    turns, now, lengths = Turns(), 0.0, []
    for _ in range(7):
        began = now
        while not turns.is_over("key", now):
            now = take(turns, now, now + 0.05)
        lengths.append(round(now - began))
        now += PAUSE
        turns.resumed("key", now, granted=True)
    assert lengths == [1, 2, 4, 8, 16, 16, 16]


def test_a_turn_is_short_again_if_another_process_took_a_slot() -> None:
    """After a refusal the next turn takes a second; other keys are not affected."""
    turns = Turns()
    now = take(turns, 0.0, 1.0)
    turns.resumed("key", now, granted=True)
    now = take(turns, now, now + 2.1)
    assert turns.is_over("key", now)
    assert not turns.is_over("other", now)
    turns.resumed("key", now, granted=False)
    assert not turns.is_over("key", now + 0.9)
    assert turns.is_over("key", now + 1.0)


def test_slots_that_were_free_begin_a_new_turn() -> None:
    """A process that used no slot for a while has not kept anybody waiting."""
    turns = Turns()
    now = take(turns, 0.0, 5.0)
    assert turns.is_over("key", now)
    assert not turns.is_over("key", now + 5)
    turns.granted("key", now + 5)
    assert not turns.is_over("key", now + 5.9)
    assert turns.is_over("key", now + 100)  # it still holds the slot


async def test_waiters_of_one_process_do_not_starve_another(client: aioredis.Redis) -> None:
    """A slot that one process passes on among its own waiters is left to others in time."""
    busy, other = (Limiter(RedisStorage(client), timeout=TIMEOUT) for _ in range(2))

    async def work() -> None:
        while True:
            async with busy.slot(REPORTS, US, timeout=None):
                await asyncio.sleep(0.02)

    workers = [asyncio.create_task(work()) for _ in range(5)]
    await asyncio.sleep(0.1)
    async with other.slot(REPORTS, US, timeout=4) as slot:
        assert slot.allowed
    for worker in workers:
        worker.cancel()
    await asyncio.gather(*workers, return_exceptions=True)
    await busy.close()
    await other.close()


async def test_closing_does_not_wait_for_the_turn_of_others(client: aioredis.Redis) -> None:
    """A waiter that leaves slots to other processes is refused at once, and asks no more."""
    storage = RedisStorage(client)
    busy, other = Limiter(storage, timeout=TIMEOUT), Limiter(RedisStorage(client), timeout=TIMEOUT)
    async with busy.slot(REPORTS, US):
        pass
    turns = busy._slots._turns  # type: ignore[union-attr]  # made by the slot
    assert turns is not None
    key, now = str(REPORTS.slot_key("bot", US)), asyncio.get_running_loop().time()
    turns.resumed(key, now - 2, granted=False)
    assert turns.is_over(key, now)
    async with other.slot(REPORTS, US):
        waiting = asyncio.create_task(busy.slot(REPORTS, US, timeout=None).__aenter__())
        await asyncio.sleep(0.1)
        await busy.close()
        slot = await asyncio.wait_for(waiting, PAUSE / 4)
        assert (slot.allowed, slot.source) == (False, "policy")
        assert not any(each.is_open for each in storage.status())
    await other.close()
