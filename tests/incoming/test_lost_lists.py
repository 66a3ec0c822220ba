"""`Collect` when the list of messages disappears from Redis."""

from __future__ import annotations

import asyncio

import pytest

from bot_ratelimit import Collect
from bot_ratelimit.admin.control import Control

from .test_collect import Calls, collecting, say
from .updates import Fleet


@pytest.mark.parametrize("fleet", ["redis"], indirect=True)
async def test_no_message_is_lost_when_redis_loses_its_data(fleet: Fleet) -> None:
    """Each instance then handles its own messages, together with the user's later ones."""
    assert fleet.client is not None
    calls = Calls()
    bots = [collecting(limiter, calls) for limiter in fleet.limiters()]
    tasks = [say(bots[0], "a"), say(bots[1], "b"), say(bots[0], "c")]
    await asyncio.sleep(0.1)
    await fleet.client.flushall()
    await asyncio.gather(*tasks, say(bots[1], "d"))
    assert sorted(map(sorted, calls.texts)) == [["a", "c"], ["b", "d"]]


@pytest.mark.parametrize("fleet", ["redis"], indirect=True)
async def test_no_message_is_lost_when_others_are_taken_after_the_loss(fleet: Fleet) -> None:
    """That later messages were taken does not say of an earlier one that it was among them.

    Neither does what is known of messages before, as after a restart with an older snapshot.
    """
    assert fleet.client is not None
    calls = Calls()
    bots = [collecting(limiter, calls, Collect(0.5, at_most=2)) for limiter in fleet.limiters()]
    tasks = [say(bots[0], "a")]
    await asyncio.sleep(0.1)
    await fleet.client.flushall()
    tasks.append(say(bots[1], "b"))
    await asyncio.sleep(0.1)
    await asyncio.gather(*tasks, say(bots[2], "c"))
    assert calls.texts == [["b", "c"], ["a"]]
    (key,) = await fleet.client.keys("*:collect:*")
    snapshot = await fleet.client.dump(key)
    last = say(bots[0], "d")
    await asyncio.sleep(0.1)
    await fleet.client.restore(key, 60_000, snapshot, replace=True)
    await last
    assert calls.texts[2:] == [["d"]]


async def test_clearing_all_counts_leaves_the_messages_that_wait(fleet: Fleet) -> None:
    """`bot-ratelimit clear` on a running bot takes nobody's messages."""
    calls = Calls()
    bots = [collecting(limiter, calls) for limiter in fleet.limiters()]
    tasks = [say(bots[0], "a"), say(bots[1], "b")]
    await asyncio.sleep(0.1)
    await Control(fleet.limiters()[2], "anna").clear(everything=True)
    await asyncio.gather(*tasks)
    assert sorted(map(sorted, calls.texts)) == [["a", "b"]]
