"""Exemptions: exempt users and chats are neither limited nor charged."""

from __future__ import annotations

from typing import Any

import pytest
from aiogram.types import Message, TelegramObject
from fakeredis import FakeAsyncRedis

from bot_ratelimit import (
    ConfigError,
    Limiter,
    MemoryStorage,
    Penalty,
    RateLimitMiddleware,
    Settings,
    Subject,
)

from .support import HANDLED, Instance, callback, inline_query, message, user
from .updates import (
    BUSINESS,
    CHANNEL_BOT,
    GROUP,
    Fleet,
    album,
    bare,
    listen,
    payment,
)

OBSERVERS = ("message", "callback_query", "inline_query", "business_message")


def by(id_: int, **fields: Any) -> dict[str, Any]:
    """A message of this user in their private chat, which has the same id."""
    return {"from": user(id_), "chat": {"id": id_, "type": "private"}} | fields


def limited(exempt: Any, **options: Any) -> Instance:
    limiter = options.pop("limiter", None) or Limiter(MemoryStorage())
    return Instance(
        RateLimitMiddleware("1/m", limiter=limiter, exempt=exempt, **options), OBSERVERS
    )


@pytest.mark.parametrize("exempt", [[42], (42, 7), {42}, frozenset({42}), iter([42]), {42: "me"}])
async def test_an_exempt_user(exempt: Any) -> None:
    """An exempt user is never refused, on any observer; all others are limited."""
    bot = limited(exempt)
    for _ in range(3):
        assert await bot.feed(message=message()) == HANDLED
        assert await bot.feed(message=message(chat=GROUP)) == HANDLED
        assert await bot.feed(callback_query=callback()) == HANDLED
        assert await bot.feed(inline_query=inline_query()) == HANDLED
        assert await bot.feed(business_message=message(**BUSINESS)) == HANDLED
    assert set(bot.decisions) == {None}
    assert await bot.send(*"ab", **by(43)) == [True, False]


async def test_an_exempt_chat() -> None:
    """In an exempt chat nobody is limited; elsewhere the same users are."""
    bot = limited([-100])
    in_group = callback(message=message(chat=GROUP))
    for id_ in (42, 43):
        assert await bot.send(*"abc", **by(id_, chat=GROUP)) == [True] * 3
    assert await bot.feed(callback_query=in_group) == HANDLED
    assert await bot.send(*"ab") == [True, False]
    assert await bot.feed(callback_query=in_group) == HANDLED


async def test_exempt_events_are_not_charged(fleet: Fleet) -> None:
    """Exempt events leave nothing in the storage: no charge, no strike, no ban, no album."""
    options: dict[str, Any] = {"penalty": Penalty("1/m", "1h"), "once_per_update": True}
    bots = fleet.start("1/m", exempt=[42], **options)
    for bot in bots:
        assert await bot.send(*"abc") == [True] * 3
        for item in album(3):
            assert await bot.feed(message=item) == HANDLED
    assert await fleet.used("1/m") == 0
    if fleet.client is not None:
        assert await fleet.keys() == set()
    assert [each for bot in bots for each in bot.session.requests] == []


@pytest.mark.parametrize("guard", [False, True])
async def test_an_async_function(guard: bool) -> None:
    """An async function of event and data decides, here about premium users and owners."""
    asked: list[tuple[TelegramObject, dict[str, Any]]] = []

    async def exempt(event: TelegramObject, data: dict[str, Any]) -> bool:
        asked.append((event, data))
        sender = data["event_from_user"]
        return bool(sender.is_premium) or sender.id == data["owner"]

    limiter = Limiter(MemoryStorage())
    bot = bare()
    bot.dispatcher["owner"] = 7
    RateLimitMiddleware("1/m", limiter=limiter, exempt=exempt, on_limited=None).setup(
        bot.dispatcher, guard=guard
    )
    listen(bot, "message")
    premium = by(43) | {"from": user(43) | {"is_premium": True}}
    assert await bot.send(*"ab") == [True, False]
    assert await bot.send(*"ab", **premium) == [True, True]
    assert await bot.send(*"ab", **by(7)) == [True, True]
    assert (await limiter.peek("1/m", Subject(user=43))).remaining == 1
    assert {type(event) for event, _ in asked} == {Message}
    assert len(asked) == 6  # once per update, also with a guard and the inner middleware


async def test_the_function_is_called_only_for_counted_events() -> None:
    """Events that are never refused, or have no sender, pass without a call."""
    asked = []

    async def exempt(event: TelegramObject, data: dict[str, Any]) -> bool:
        asked.append(event)
        return False

    bot = limited(exempt)
    await bot.feed(message=payment())
    await bot.send("a", **{"from": CHANNEL_BOT})
    assert asked == []
    await bot.send("a")
    assert len(asked) == 1


async def test_more_ids_later() -> None:
    """`exempt()` adds ids, also if a function was given; invalid ids are an error."""
    for given in ([43], lambda event, data: False):
        bot = limited(given)
        (middleware,) = bot.dispatcher.message.middleware
        assert isinstance(middleware, RateLimitMiddleware)
        middleware.exempt([42])
        assert [await bot.feed(message=message()) for _ in range(3)] == [HANDLED] * 3
        for wrong in (["42"], "42", [True], 42, lambda event, data: True):
            with pytest.raises(ConfigError, match="exempt"):
                middleware.exempt(wrong)  # type: ignore[arg-type]  # that is the point


async def test_exemptions_apply_to_handlers_limits(fake_client: FakeAsyncRedis) -> None:
    """A user who is exempt from the middleware is exempt from the flags that it reads."""
    bot = bare()
    RateLimitMiddleware("1/m", fake_client, exempt=[42], timeout=5).setup(
        bot.dispatcher, guard=True
    )
    listen(bot, "message", flags={"rate_limit": "1/m"})
    assert await bot.send(*"abc") == [True] * 3
    assert await fake_client.keys() == []


async def test_a_banned_user_can_be_exempted(fleet: Fleet) -> None:
    """A newly exempt id passes, whatever was counted before."""
    penalty = Penalty("1/m", "1h")
    bots = fleet.start("1/m", penalty=penalty, on_limited=None)
    assert await bots[0].send(*"abc") == [True, False, False]
    restarted = fleet.start("1/m", penalty=penalty, exempt=[42], on_limited=None)
    assert await restarted[0].send(*"abc") == [True] * 3


@pytest.mark.parametrize(
    ("exempt", "wrong"),
    [
        (["42"], "'42'"),
        ("42", ""),
        ([4.2], "4.2"),
        ([True], "True"),
        ([None], "None"),
        (42, "42"),
        (None, "None"),
    ],
    ids=str,
)
def test_invalid_ids_are_errors(exempt: Any, wrong: str) -> None:
    """Ids are whole numbers; the error shows anything else."""
    with pytest.raises(ConfigError) as error:
        RateLimitMiddleware(exempt=exempt)
    assert "exempt" in str(error.value)
    assert wrong in str(error.value)


@pytest.mark.parametrize("value", ["42, -100", "42,-100", " 42 -100 ", "42,,-100,"])
async def test_from_the_environment(
    value: str, environment: pytest.MonkeyPatch, fake_client: FakeAsyncRedis
) -> None:
    """RATE_LIMIT_EXEMPT lists users and chats, separated by commas or spaces."""
    environment.setenv("RATE_LIMIT_EXEMPT", value)
    environment.setenv("RATE_LIMIT", "1/m")
    environment.setenv("RATE_LIMIT_TIMEOUT", "5")
    middleware = RateLimitMiddleware.from_settings(redis_client=fake_client, on_limited=None)
    bot = Instance(middleware)
    assert await bot.send(*"abc") == [True] * 3
    assert await bot.send(*"ab", **by(43, chat=GROUP)) == [True, True]
    assert await fake_client.keys() == []
    assert await bot.send(*"ab", **by(43)) == [True, False]


async def test_the_argument_wins(environment: pytest.MonkeyPatch) -> None:
    """`exempt=` given to `from_settings` replaces the environment's list."""
    environment.setenv("RATE_LIMIT_EXEMPT", "42")
    environment.setenv("RATE_LIMIT", "1/m")
    bot = Instance(RateLimitMiddleware.from_settings(exempt=[43], on_limited=None))
    assert await bot.send(*"ab") == [True, False]
    assert await bot.send(*"ab", **by(43)) == [True, True]


@pytest.mark.parametrize("value", ["Anna", "42; 43", "4.2", "@anna"])
def test_an_invalid_variable_is_named(value: str, environment: pytest.MonkeyPatch) -> None:
    """An invalid id in RATE_LIMIT_EXEMPT stops the bot at its start."""
    environment.setenv("RATE_LIMIT_EXEMPT", value)
    with pytest.raises(ConfigError, match="RATE_LIMIT_EXEMPT"):
        Settings()
