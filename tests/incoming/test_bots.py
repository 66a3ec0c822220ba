"""Messages of other bots, which Telegram allows: such talk must end by itself."""

from __future__ import annotations

from typing import Any

import pytest
from aiogram.methods import SendMessage
from aiogram.types import Message, TelegramObject

from bot_ratelimit import ConfigError, Decision, Limiter, MemoryStorage, RateLimitMiddleware
from bot_ratelimit.testing import Clock

from .support import chat, message
from .updates import GROUP, Fleet, bare, limited, listen

OTHER = {"id": 77, "is_bot": True, "first_name": "Echo"}
SENT = {"chat": GROUP, "from": OTHER}


async def test_a_bot_has_twenty_messages_a_minute_on_all_instances(fleet: Fleet) -> None:
    """Its limit counts for each bot and chat, over all instances."""
    bots = fleet.start("1000/s", on_limited=None)
    for bot in bots:
        assert await bot.send(*"abcdef", **SENT) == [True] * 6
    assert await bots[0].send(*"abc", **SENT) == [True, True, False]
    for other in (
        SENT | {"from": OTHER | {"id": 78}},
        SENT | {"chat": chat(-101, "group")},
        {"chat": GROUP},
    ):
        assert await bots[1].send("a", **other) == [True]


async def test_a_bot_above_its_limit_is_ignored_for_a_minute(
    limiter: Limiter, clock: Clock
) -> None:
    """The minute begins with the message that exceeds the limit."""
    bot = limited("1000/s", limiter=limiter, bots="2/30s")
    assert await bot.send(*"ab", **SENT) == [True, True]
    for seconds, handled in ((29, False), (59, False), (1, True)):
        clock.move(seconds)
        assert await bot.send("c", **SENT) == [handled]


@pytest.mark.parametrize("guard", [False, True])
@pytest.mark.parametrize("exempt", [[GROUP["id"]], lambda event, data: True])
async def test_an_exempt_group_does_not_exempt_bots(exempt: Any, guard: bool) -> None:
    """Neither its id nor a function exempts them, nor a handler without a limit; their id does."""
    bot = limited("1000/s", bots="1/m", exempt=exempt, guard=guard)
    assert await bot.send(*"ab", **SENT) == [True, False]
    free = limited("1/m", bots="1/m", flag=False)
    assert await free.send(*"ab", **SENT) == [True, False]
    (middleware,) = free.dispatcher.message.middleware
    assert isinstance(middleware, RateLimitMiddleware)
    middleware.exempt([OTHER["id"]])
    assert await free.send(*"ab", **SENT) == [True, True]


async def test_a_refused_bot_is_told_nothing() -> None:
    """Neither a notice nor `on_limited` answers a bot, which might answer again."""
    called = []

    def tell(event: TelegramObject, decision: Decision, data: dict[str, Any]) -> None:
        called.append(event)

    for on_limited in (tell, "Wait {wait}."):
        bot = limited("1000/s", bots="1/m", on_limited=on_limited)
        private = {"from": OTHER, "chat": chat(OTHER["id"])}
        assert await bot.send(*"abc", **private) == [True, False, False]
        assert bot.session.requests == []
    assert called == []


async def test_bots_may_be_limited_like_users() -> None:
    """With `bots=None` the middleware's rules and exemptions are theirs too."""
    bot = limited("1000/s", bots=None, exempt=[GROUP["id"]])
    assert await bot.send(*["a"] * 30, **SENT) == [True] * 30
    with pytest.raises(ConfigError, match="bots='many'"):
        limited(bots="many")


async def test_two_middlewares_charge_a_bot_once(limiter: Limiter) -> None:
    bot = bare()
    for rate_limit in ("9/s", None):
        middleware = RateLimitMiddleware(rate_limit, limiter=limiter, bots="2/m")
        bot.dispatcher.message.middleware(middleware)
    listen(bot, "message")
    assert await bot.send(*"abc", **SENT) == [True, True, False]


async def test_two_bots_that_answer_each_other_end(clock: Clock) -> None:
    """Each answers every message of the other; after some dozens one of them ignores the other."""
    bots = [limited("1000/s", limiter=Limiter(MemoryStorage(clock=clock))) for _ in range(2)]

    async def answer(event: Message) -> SendMessage:
        return SendMessage(chat_id=event.chat.id, text="And you?")

    for bot in bots:
        bot.dispatcher.message.handlers.clear()
        bot.dispatcher.message.register(answer)
    sender, said = 0, 0
    answered: Any = True
    while answered and said < 1_000:
        said += 1
        talker = OTHER | {"id": 100 + sender}
        answered = await bots[1 - sender].feed(message=message(chat=GROUP, **{"from": talker}))
        sender = 1 - sender
        clock.move(0.5)
    assert said == 41
