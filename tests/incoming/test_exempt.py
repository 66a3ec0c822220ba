"""Exemptions: exempt users and chats are neither limited nor charged."""

from __future__ import annotations

import logging
from typing import Any

import pytest
from aiogram.types import Message, TelegramObject

from bot_ratelimit import ConfigError, Limiter, Penalty, RateLimitMiddleware, Settings, Subject
from tests.tables import table

from .support import HANDLED, Instance, callback, inline_query, message, user
from .updates import BUSINESS, CHANNEL_BOT, GROUP, Fleet, album, limited, payment

OBSERVERS = ("message", "callback_query", "inline_query", "business_message")
INVALID: list[Any] = [["42"], "42", [4.2], [True], [None], 42, None]


def by(id_: int, **fields: Any) -> dict[str, Any]:
    """A message of this user in their private chat, which has the same id."""
    return {"from": user(id_), "chat": {"id": id_, "type": "private"}} | fields


@pytest.mark.parametrize("exempt", [{42, -100}, iter([42, -100]), {42: "me", -100: "us"}])
async def test_an_exempt_user_and_chat(exempt: Any) -> None:
    """They are never refused, on any observer, nor is anybody in the chat; all others are."""
    bot = limited("1/m", OBSERVERS, exempt=exempt)
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


async def test_exempt_events_are_not_charged(fleet: Fleet) -> None:
    """Exempt events leave nothing in the storage: no charge, no strike, no ban, no album."""
    penalty = Penalty("1/m", "1h")
    bots = fleet.start("1/m", exempt=[42], penalty=penalty, once_per_update=True)
    for bot in bots:
        assert await bot.send(*"abc") == [True] * 3
        assert [await bot.feed(message=item) for item in album(3)] == [HANDLED] * 3
    assert await fleet.used("1/m") == 0
    if fleet.client is not None:
        assert await fleet.keys() == set()


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

    def exempt(event: TelegramObject, data: dict[str, Any]) -> bool:
        return bool(data["staff"])

    bot = limited("2/m", exempt=exempt)
    assert await bot.send(*"abc") == [True, True, False]
    (line,) = [each for each in caplog.records if each.levelno == logging.ERROR]
    assert line.exc_info is not None
    assert "a function of the bot failed: KeyError('staff')" in line.getMessage()


@pytest.mark.parametrize("given", [[43], lambda event, data: False])
async def test_more_ids_later(given: Any) -> None:
    """`exempt()` adds ids, also if a function was given; invalid ids are an error."""
    bot = limited(exempt=given)
    (middleware,) = bot.dispatcher.message.middleware
    assert isinstance(middleware, RateLimitMiddleware)
    middleware.exempt([42])
    assert await bot.send(*"abc") == [True] * 3
    for wrong in (*INVALID, lambda event, data: True):
        with pytest.raises(ConfigError, match="exempt"):
            middleware.exempt(wrong)


async def test_exemptions_and_payments_pass_a_handlers_own_limit() -> None:
    bot = limited("1/m", exempt=[42], guard=True, flag="1/m")
    assert await bot.send(*"abc") == [True] * 3
    assert await bot.send(*"ab", **by(43)) == [True, False]
    assert await bot.feed(message=payment(**by(43))) == HANDLED


@table("exempt", INVALID)
def test_invalid_ids_are_errors(exempt: Any) -> None:
    """Ids are whole numbers; the error shows anything else."""
    with pytest.raises(ConfigError, match="exempt") as error:
        RateLimitMiddleware(exempt=exempt)
    wrong = exempt[0] if isinstance(exempt, list) else exempt
    assert repr(wrong) in str(error.value)


async def test_from_the_environment(environment: pytest.MonkeyPatch) -> None:
    """RATE_LIMIT_EXEMPT lists users and chats; the argument replaces it."""
    environment.setenv("RATE_LIMIT", "1/m")
    for value in ("42, -100", " 42 -100 ", "42,,-100,"):
        environment.setenv("RATE_LIMIT_EXEMPT", value)
        bot = Instance(RateLimitMiddleware.from_settings(on_limited=None))
        assert await bot.send(*"abc") == [True] * 3
        assert await bot.send(*"ab", **by(43, chat=GROUP)) == [True, True]
        assert await bot.send(*"ab", **by(43)) == [True, False]
    bot = Instance(RateLimitMiddleware.from_settings(exempt=[43], on_limited=None))
    assert await bot.send(*"ab") == [True, False]
    assert await bot.send(*"ab", **by(43)) == [True, True]
    for value in ("Anna", "42; 43", "4.2"):
        environment.setenv("RATE_LIMIT_EXEMPT", value)
        with pytest.raises(ConfigError, match="RATE_LIMIT_EXEMPT"):
            Settings()


async def test_a_banned_user_can_be_exempted(fleet: Fleet) -> None:
    """A newly exempt id passes, whatever was counted before."""
    penalty = Penalty("1/m", "1h")
    bots = fleet.start("1/m", penalty=penalty, on_limited=None)
    assert await bots[0].send(*"abc") == [True, False, False]
    restarted = fleet.start("1/m", penalty=penalty, exempt=[42], on_limited=None)
    assert await restarted[0].send(*"abc") == [True] * 3
