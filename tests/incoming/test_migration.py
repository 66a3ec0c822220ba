"""A group becomes a supergroup and gets a new id."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from aiogram import F

from bot_ratelimit import Collect, Concurrency, Limiter, Penalty, RateLimitMiddleware, Rule, Subject
from bot_ratelimit.testing import FlakyStorage

from .support import HANDLED, Instance, chat, message, user
from .updates import Fleet, bare, content, listen

OLD, NEW = -5, -1005
GROUP, SUPERGROUP = chat(OLD, "group"), chat(NEW, "supergroup")
NOTES = [
    {"message": content(migrate_to_chat_id=NEW, chat=GROUP)},
    {"message": content(migrate_from_chat_id=OLD, chat=SUPERGROUP)},
]


def put(bot: Instance, limiter: Limiter, **options: Any) -> RateLimitMiddleware:
    rules = [Rule("9/h", "chat"), Rule("9/h", "member"), Rule("9/h")]
    middleware = RateLimitMiddleware(rules, limiter=limiter, on_limited=None, **options)
    listen(bot, "message")
    return middleware.setup(bot.dispatcher)


async def migrate(bots: list[Instance]) -> None:
    """Each of the two service messages reaches another instance, at the same time."""
    await asyncio.gather(*(bot.feed(**note) for bot, note in zip(bots, NOTES, strict=False)))


async def test_counts_and_bans_go_over_once(fleet: Fleet) -> None:
    """Counts of the chat and its members, bans by hand and by a penalty have the new id.

    So has a ban of those who write as the group.
    """
    bots = fleet.assemble(put)
    assert await bots[0].send(*"abc", chat=GROUP) == [True] * 3
    limiter = fleet.limiters()[0]
    penalty = Penalty("1/m", "1h", scope="chat")
    for _ in range(2):
        await limiter.hit([Rule("1/h", "chat", "x"), penalty], Subject(chat=OLD))
    await limiter.ban(Subject(user=43, chat=OLD), "1h", "spam", "Anna")
    await limiter.ban(Subject(user=OLD), "2h")
    await migrate(bots)
    by_hand = [each for each in await limiter.bans() if not each.key]
    as_group, ban = sorted(by_hand, key=lambda each: each.reason)
    assert (ban.subject, ban.reason, ban.by) == (Subject(user=43, chat=NEW), "spam", "Anna")
    assert as_group.subject == Subject(user=NEW)
    at = Subject(user=42, chat=NEW)
    assert await fleet.used(Rule("9/h", "chat"), at) == 3
    assert await fleet.used(Rule("9/h", "member"), at) == 3
    assert await fleet.used(Rule("9/h", "chat"), Subject(chat=OLD)) == 0
    assert (await limiter.peek(["9/h", penalty], Subject(chat=NEW))).banned
    await asyncio.sleep(0.6)  # the other instances look for bans twice a second
    assert await bots[2].send("a", chat=SUPERGROUP, **{"from": user(43)}) == [False]
    before = await fleet.used(Rule("9/h", "chat"), at)
    await migrate(bots)  # Telegram sends it again
    assert await fleet.used(Rule("9/h", "chat"), at) == before


@pytest.mark.parametrize("live", [False, True])
async def test_exemptions(live: bool, fleet: Fleet, caplog: pytest.LogCaptureFixture) -> None:
    """They go over on every instance with live changes; else on one, and a warning names both."""
    made: list[RateLimitMiddleware] = []
    bots = fleet.assemble(
        lambda bot, limiter: made.append(put(bot, limiter, live=live, exempt=[OLD]))
    )
    for each in made:
        if each.live is not None:
            await each.live.begin()
    await migrate(bots)
    for each, bot in zip(made, bots, strict=True):
        if each.live is not None:
            await each.live.refresh()
            assert each.live.overrides.exempt == {NEW}
            assert each.live.overrides.what == "group -5 became -1005"
        if live or bot is bots[0]:
            await bot.send(*"abc", chat=SUPERGROUP)
            assert bot.decisions[-3:] == [None] * 3
        await each.close()
    assert live != any("-1005: change its id in exempt" in each for each in caplog.messages)


async def test_a_storage_that_fails_breaks_nothing(caplog: pytest.LogCaptureFixture) -> None:
    """The service message is handled all the same, and the log says that not all went over."""
    storage = FlakyStorage()
    bot = bare()
    put(bot, Limiter(storage, on_error="memory"))
    await bot.send("a", chat=GROUP)
    storage.fail()
    assert await bot.feed(**NOTES[0]) == HANDLED
    assert any("not everything went over" in each for each in caplog.messages)


async def test_what_is_under_way_stays_where_its_owner_looks(fleet: Fleet) -> None:
    """A block that began in the group holds no slot of the supergroup, and frees its own.

    Messages that wait meanwhile, to be handled as one, are handled.
    """
    limiter, bots = fleet.limiters()[0], fleet.assemble(put)
    one, collect = Concurrency(1, "chat", "x"), {"rate_limit": {"collect": Collect(0.3, 1.0)}}
    for bot in bots:
        bot.dispatcher.message.handlers.clear()
        bot.dispatcher.message.register(bot._handle, F.text, flags=collect)
    waits = asyncio.create_task(bots[0].feed(message=message("a", chat=GROUP)))
    await asyncio.sleep(0.1)
    async with limiter.slot(one, Subject(chat=OLD)):
        await migrate(bots)
        async with limiter.slot(one, Subject(chat=OLD)) as second:
            assert not second.allowed
    for chat_id in (OLD, NEW):
        async with limiter.slot(one, Subject(chat=chat_id)) as slot:
            assert slot.allowed
    assert await waits == HANDLED
    await limiter.close()


async def test_a_count_that_has_begun_in_the_supergroup_stays(fleet: Fleet) -> None:
    """What the supergroup has counted is neither lost nor added to; a ban of the group goes over.

    So does what the outgoing limits keep under the id of the group, such as a 429 block.
    """
    bots, limiter = fleet.assemble(put), fleet.limiters()[0]
    await bots[0].send(*"abc", chat=GROUP)
    await bots[1].send("d", chat=SUPERGROUP)
    await limiter.ban(Subject(chat=OLD))
    if fleet.client is not None:
        await fleet.client.set(f"bot:ratelimit:out:flood:{OLD}", 1, ex=60)
    await migrate(bots)
    assert [each.subject for each in await limiter.bans()] == [Subject(chat=NEW)]
    await limiter.unban(Subject(chat=NEW))
    assert await fleet.used(Rule("9/h", "chat"), Subject(chat=NEW)) == 1
    assert await fleet.used(Rule("9/h", "chat"), Subject(chat=OLD)) == 3
    if fleet.client is not None:
        assert "out:flood:-1005" in await fleet.keys()
