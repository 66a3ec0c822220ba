"""`Collect` when the list of messages disappears from Redis."""

from __future__ import annotations

import asyncio
import logging
import time

import pytest
import redis.asyncio as aioredis

from bot_ratelimit import Collect, Limiter, RedisStorage
from bot_ratelimit.admin.control import Control
from tests.proxy import distant
from tests.servers import Server

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


async def test_a_blocked_loop_and_lost_scripts_are_no_outage(
    redis_server: Server, client: aioredis.Redis, caplog: pytest.LogCaptureFixture
) -> None:
    """A busy bot whose server has lost the scripts asks it again, as for any other decision."""
    calls = Calls()
    with distant(redis_server.port, 0.02) as proxy:
        limiter = Limiter(RedisStorage(f"redis://127.0.0.1:{proxy.port}"))
        bot = collecting(limiter, calls)
        await say(bot, "a")
        await client.script_flush()
        first = say(bot, "b")
        await asyncio.sleep(0.004)
        time.sleep(0.3)  # noqa: ASYNC251 - that is what is tested
        await asyncio.gather(first, say(bot, "c"))
        await limiter.close()
    assert calls.texts == [["a"], ["b", "c"]]
    assert not [each for each in caplog.records if each.levelno >= logging.WARNING]


async def test_an_outage_that_a_collected_message_meets_first_names_the_server(
    own_server: Server, caplog: pytest.LogCaptureFixture
) -> None:
    """As every line about an outage does."""
    limiter = Limiter(RedisStorage(own_server.url), timeout=0.1)
    bot = collecting(limiter, Calls(), Collect(0.1, 0.2))
    await say(bot, "a")
    own_server.hang()
    await say(bot, "b")
    own_server.resume()
    await limiter.close()
    failed = [each for each in caplog.messages if "check failed" in each]
    assert f"no answer from 127.0.0.1:{own_server.port} within 0.1 s" in failed[0]
