"""Messages of other bots, which Telegram allows: such talk must end by itself."""

from __future__ import annotations

from typing import Any

import pytest
from aiogram.methods import SendMessage
from aiogram.types import Message, TelegramObject

from bot_ratelimit import ConfigError, Decision, Limiter, MemoryStorage, RateLimitMiddleware
from bot_ratelimit.testing import Clock

from .support import HANDLED, Instance, chat, message
from .updates import GROUP, Fleet, bare, listen

OTHER = {"id": 77, "is_bot": True, "first_name": "Echo"}
SENT = {"chat": GROUP, "from": OTHER}


def limited(clock: Clock, *, guard: bool = False, **options: Any) -> Instance:
    bot = bare()
    limiter = Limiter(MemoryStorage(clock=clock))
    RateLimitMiddleware("1000/s", limiter=limiter, **options).setup(bot.dispatcher, guard=guard)
    return listen(bot, "message")


async def test_a_bot_has_twenty_messages_a_minute_on_all_instances(fleet: Fleet) -> None:
    """Its limit counts for each bot and chat, over all instances."""
    bots = fleet.start("1000/s", on_limited=None)
    for bot in bots:
        assert await bot.send(*"abcdef", **SENT) == [True] * 6
    assert await bots[0].send(*"abc", **SENT) == [True, True, False]
    assert await bots[1].send("a", **SENT | {"from": OTHER | {"id": 78}}) == [True]
    assert await bots[1].send("a", **SENT | {"chat": chat(-101, "group")}) == [True]
    assert await bots[1].send("a", chat=GROUP) == [True]


async def test_a_bot_above_its_limit_is_ignored_for_a_minute(clock: Clock) -> None:
    """The minute begins with the message that exceeds the limit."""
    bot = limited(clock, bots="2/30s", on_limited=None)
    assert await bot.send(*"ab", **SENT) == [True, True]
    clock.move(29)
    assert await bot.send("c", **SENT) == [False]
    clock.move(59)
    assert await bot.send("d", **SENT) == [False]
    clock.move(1)
    assert await bot.send("e", **SENT) == [True]


@pytest.mark.parametrize("guard", [False, True])
@pytest.mark.parametrize(
    "exempt", [[GROUP["id"]], lambda event, data: True], ids=["id", "function"]
)
async def test_an_exempt_group_does_not_exempt_bots(exempt: Any, guard: bool, clock: Clock) -> None:
    """Neither its id nor a function exempts them, nor a handler without a limit; their id does."""
    bot = limited(clock, bots="1/m", exempt=exempt, guard=guard)
    assert await bot.send(*"ab", **SENT) == [True, False]
    free = bare()
    middleware = RateLimitMiddleware("1/m", limiter=Limiter(MemoryStorage()), bots="1/m")
    middleware.setup(free.dispatcher)
    listen(free, "message", flags={"rate_limit": False})
    assert await free.send(*"ab", **SENT) == [True, False]
    middleware.exempt([OTHER["id"]])
    assert await free.send(*"ab", **SENT) == [True, True]


async def test_a_refused_bot_is_told_nothing(clock: Clock) -> None:
    """Neither a notice nor `on_limited` answers a bot, which might answer again."""
    called = []

    def tell(event: TelegramObject, decision: Decision, data: dict[str, Any]) -> None:
        called.append(event)

    for on_limited in (tell, "Wait {wait}."):
        bot = limited(clock, bots="1/m", on_limited=on_limited)
        private = {"from": OTHER, "chat": chat(OTHER["id"])}
        assert await bot.send(*"abc", **private) == [True, False, False]
        assert bot.session.requests == []
    assert called == []


async def test_two_bots_that_answer_each_other_end(clock: Clock) -> None:
    """Each answers every message of the other; after some dozens one of them ignores the other."""
    bots = [limited(clock), limited(clock)]

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


async def test_bots_may_be_limited_like_users(clock: Clock) -> None:
    """With `bots=None` the middleware's rules and exemptions are theirs too."""
    bot = limited(clock, bots=None, exempt=[GROUP["id"]])
    assert await bot.send(*["a"] * 30, **SENT) == [True] * 30
    with pytest.raises(ConfigError, match="bots='many'"):
        limited(clock, bots="many")


async def test_two_middlewares_charge_a_bot_once(clock: Clock) -> None:
    """A message of a bot that passes several middlewares counts once."""
    bot, limiter = bare(), Limiter(MemoryStorage(clock=clock))
    for rate_limit in ("9/s", None):
        bot.dispatcher.message.middleware(
            RateLimitMiddleware(rate_limit, limiter=limiter, bots="2/m")
        )
    listen(bot, "message")
    assert [await bot.feed(message=message(**SENT)) for _ in range(3)] == [HANDLED, HANDLED, None]
