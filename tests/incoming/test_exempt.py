"""Exempt users and chats are not limited; messages of other bots have a limit of their own."""

from __future__ import annotations

import logging
from typing import Any
from unittest.mock import Mock

import pytest
from aiogram.types import Message, TelegramObject

from bot_ratelimit import ConfigError, Limiter, Penalty, RateLimitMiddleware, Subject
from bot_ratelimit.testing import Clock

from .support import HANDLED, callback, chat, inline_query, message, user
from .updates import BUSINESS, CHANNEL_BOT, GROUP, Fleet, album, bare, limited, listen, payment


def by(id_: int, **fields: Any) -> dict[str, Any]:
    """A message of this user in their private chat, which has the same id."""
    return {"from": user(id_), "chat": {"id": id_, "type": "private"}} | fields


@pytest.mark.parametrize("exempt", [{42, -100}, iter([42, -100]), {42: "me", -100: "us"}])
async def test_an_exempt_user_and_chat(exempt: Any) -> None:
    """They are never refused, on any observer, nor is anybody in the chat; all others are."""
    observers = ("message", "callback_query", "inline_query", "business_message")
    bot = limited("1/m", observers, exempt=exempt)
    for _ in range(2):
        assert await bot.feed(message=message()) == HANDLED
        assert await bot.feed(message=message(chat=GROUP | {"id": -101})) == HANDLED
        assert await bot.feed(callback_query=callback()) == HANDLED
        assert await bot.feed(inline_query=inline_query()) == HANDLED
        assert await bot.feed(business_message=message(**BUSINESS)) == HANDLED
    assert await bot.send(*"abc", **by(43, chat=GROUP)) == [True] * 3
    in_group = {"from": user(43), "message": message(chat=GROUP)}
    assert await bot.feed(callback_query=callback(**in_group)) == HANDLED
    assert set(bot.decisions) == {None}
    assert await bot.send(*"ab", **by(43)) == [True, False]
    assert bot.session.requests == []  # with on_limited=None nobody is told


async def test_exempt_events_are_not_charged(fleet: Fleet) -> None:
    """They leave nothing in the storage: no charge, no strike, no album; and a ban ends."""
    options: dict[str, Any] = {"penalty": Penalty("1/m", "1h"), "on_limited": None}
    assert await fleet.start("1/m", **options)[0].send(*"abc", **by(43)) == [True, False, False]
    for bot in fleet.start("1/m", exempt=[42, 43], once_per_update=True, **options):
        assert await bot.send(*"abc") == [True] * 3
        assert await bot.send(*"abc", **by(43)) == [True] * 3
        assert [await bot.feed(message=item) for item in album(3)] == [HANDLED] * 3
    assert await fleet.used("1/m") == 0
    if fleet.client is not None:
        assert await fleet.keys() == {"43", "ban:43", "{bans}:ends", "{bans}:details"}


@pytest.mark.parametrize("guard", [False, True])
async def test_an_async_function(guard: bool, limiter: Limiter) -> None:
    """It decides by event and data, and is asked once about an update, and only if it counts."""
    asked: list[TelegramObject] = []

    async def exempt(event: TelegramObject, data: dict[str, Any]) -> bool:
        asked.append(event)
        sender = data["event_from_user"]
        return bool(sender.is_premium) or sender.id == data["owner"]

    bot = limited("1/m", limiter=limiter, exempt=exempt, guard=guard)
    bot.dispatcher["owner"] = 7
    premium = by(43) | {"from": user(43) | {"is_premium": True}}
    assert await bot.send(*"ab") == [True, False]
    assert await bot.send(*"ab", **premium) == [True, True]
    assert await bot.send(*"ab", **by(7)) == [True, True]
    assert (await limiter.peek("1/m", Subject(user=43))).remaining == 1
    await bot.feed(message=payment())
    await bot.send("a", **{"from": CHANNEL_BOT})
    assert [type(event) for event in asked] == [Message] * 6


async def test_a_function_that_fails_exempts_nobody(caplog: pytest.LogCaptureFixture) -> None:
    """The update is counted, and the log has the traceback once, not every time."""
    bot = limited("2/m", exempt=lambda event, data: data["staff"])
    assert await bot.send(*"abc") == [True, True, False]
    (line,) = [each for each in caplog.records if each.levelno == logging.ERROR]
    assert line.exc_info is not None
    assert "a function of the bot failed: KeyError('staff')" in line.getMessage()


@pytest.mark.parametrize("given", [[43], lambda event, data: False])
async def test_more_ids_later(given: Any) -> None:
    """`exempt()` adds ids, also if a function was given; ids are whole numbers."""
    bot = limited(exempt=given)
    (middleware,) = bot.dispatcher.message.middleware
    assert isinstance(middleware, RateLimitMiddleware)
    middleware.exempt([42])
    assert await bot.send(*"abc") == [True] * 3
    for wrong in (["42"], "42", [4.2], [True], [None], 42, None):
        shown = repr(wrong[0] if isinstance(wrong, list) else wrong)
        for take in (middleware.exempt, lambda ids: RateLimitMiddleware(exempt=ids)):
            with pytest.raises(ConfigError, match=f"exempt.*{shown}"):
                take(wrong)
    with pytest.raises(ConfigError, match="exempt"):
        middleware.exempt(lambda event, data: True)  # type: ignore[arg-type]  # a mistake


async def test_exemptions_and_payments_pass_a_handlers_own_limit() -> None:
    bot = limited("1/m", exempt=[42], guard=True, flag="1/m")
    assert await bot.send(*"abc") == [True] * 3
    assert await bot.send(*"ab", **by(43)) == [True, False]
    assert await bot.feed(message=payment(**by(43))) == HANDLED


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
    """The minute begins with the message that exceeds the limit, which two middlewares share."""
    bot = bare()
    for rate_limit in ("9/s", None):
        middleware = RateLimitMiddleware(rate_limit, limiter=limiter, bots="2/30s")
        bot.dispatcher.message.middleware(middleware)
    assert await listen(bot, "message").send(*"ab", **SENT) == [True, True]
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
    tell = Mock()
    for on_limited in (lambda event, decision, data: tell(), "Wait {wait}."):
        bot = limited("1000/s", bots="1/m", on_limited=on_limited)
        private = {"from": OTHER, "chat": chat(OTHER["id"])}
        assert await bot.send(*"abc", **private) == [True, False, False]
        assert bot.session.requests == []
    tell.assert_not_called()


async def test_bots_may_be_limited_like_users() -> None:
    """With `bots=None` the middleware's rules and exemptions are theirs too."""
    bot = limited("1000/s", bots=None, exempt=[GROUP["id"]])
    assert await bot.send(*["a"] * 30, **SENT) == [True] * 30
    with pytest.raises(ConfigError, match="bots='many'"):
        limited(bots="many")
