"""RateLimitMiddleware: the contract, bans, its arguments, and its end with the dispatcher."""

from __future__ import annotations

import asyncio
import logging
from typing import Any

import pytest
import redis
import redis.asyncio as aioredis
from aiogram.methods import SendMessage
from aiogram.types import Message, Poll
from fakeredis import FakeAsyncRedis, FakeServer

from bot_ratelimit import (
    Concurrency,
    ConfigError,
    Decision,
    Limiter,
    MemoryStorage,
    Notices,
    Observer,
    Penalty,
    RateLimitMiddleware,
    Rule,
    Settings,
    Subject,
)
from bot_ratelimit.testing import Clock, FlakyStorage
from tests.recorder import Recorder
from tests.servers import Server, free_port
from tests.tables import table

from .support import HANDLED, Instance, callback, message, user
from .updates import UPDATES, Fleet, bare, limited, listen


@pytest.fixture(params=["fake_client", "client"])
def shared(request: pytest.FixtureRequest) -> aioredis.Redis:
    return request.getfixturevalue(request.param)


async def test_the_contract(shared: aioredis.Redis) -> None:
    """With one event a second the first is handled, and GET and TTL of the key explain it."""
    bot = Instance(RateLimitMiddleware(1.0, shared, "booking_bot:client1"))
    key, values = "booking_bot:client1:ratelimit:42", []
    for _ in range(3):
        await bot.send("hello")
        values.append(await shared.get(key))
    assert values == [b"1", b"2", b"3"]
    assert len(bot.handled) == 1
    assert await shared.ttl(key) in (0, 1)
    assert 0 < await shared.pttl(key) <= 1_000
    assert await shared.keys("booking_bot:client1:ratelimit:[0-9]*") == [key.encode()]


async def test_handler_exceptions_pass_unchanged() -> None:
    bot = limited("1/m", ())
    bot.dispatcher.message.register(lambda event: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        await bot.send("a")
    assert await bot.send("a") == [False]


async def test_works_without_a_dispatcher() -> None:
    """Called directly, as in a unit test, the middleware counts the event's own sender."""
    middleware = RateLimitMiddleware("1/m", on_limited=None)
    seen: list[dict[str, Any]] = []

    async def handler(event: Any, data: dict[str, Any]) -> str:
        seen.append(data)
        return HANDLED

    events = [Message.model_validate(message()), Message.model_validate(message())]
    results = [await middleware(handler, event, {}) for event in events]
    assert results == [HANDLED, None]
    assert seen[0]["rate_limit"].remaining == 0
    assert await middleware(handler, Poll.model_validate(UPDATES["poll"]), {}) == HANDLED
    assert seen[1] == {"rate_limit": None}


@pytest.mark.parametrize("on_error", ["allow", "deny", "memory"])
async def test_redis_unreachable(on_error: Any, caplog: pytest.LogCaptureFixture) -> None:
    """A bot starts with Redis down; the policy answers, and no handler gets an exception."""
    async with aioredis.Redis.from_url(f"redis://127.0.0.1:{free_port()}") as client:
        bot = listen(bare(), "message")
        RateLimitMiddleware("2/m", client, on_error=on_error).setup(bot.dispatcher)
        await bot.dispatcher.emit_startup()
        handled = await bot.send(*"abc")
    expected = {"allow": [True] * 3, "deny": [False] * 3, "memory": [True, True, False]}
    assert handled == expected[on_error]
    assert {d and d.source for d in bot.decisions} <= {"policy", "memory"}
    assert "Redis rate limit check failed: " in caplog.text
    assert f"(on_error='{on_error}')" in caplog.text


ANNA = Subject(user=42)
PENALTY = Penalty("3/m", "1h")


async def test_a_ban_holds_on_every_instance(
    fleet: Fleet, caplog: pytest.LogCaptureFixture
) -> None:
    """Refusals counted by one instance ban on another, for messages and presses.

    The key counts the refused attempts, its TTL is the rest of the ban; it is logged once.
    """
    caplog.set_level(logging.WARNING, "bot_ratelimit")
    seen: list[Decision] = []
    options: dict[str, Any] = {"on_limited": lambda event, decision, data: seen.append(decision)}
    bots = fleet.start("1/m", observers=["message", "callback_query"], penalty=PENALTY, **options)
    assert [(await bot.send("a"))[0] for bot in (*bots, bots[0])] == [True, False, False, False]
    assert [d.banned for d in seen] == [False, False, True]
    await fleet.limiters()[2].reset("1/m", ANNA)  # the limit itself has room again
    fed = [bot.feed(message=message()) for bot in bots]
    fed += [bot.feed(callback_query=callback()) for bot in bots]
    assert await asyncio.gather(*fed) == [None] * 6
    assert all(d.banned for d in seen[3:])
    assert {d.source for d in seen} == {"memory" if fleet.client is None else "redis"}
    assert [each for each in caplog.messages if "Banned" in each] == [
        "Banned for 3600 s: bot:ratelimit:ban:42 (ban of 3600 s after 3/minute)"
    ]
    if fleet.client is not None:
        assert await fleet.keys() == {"ban:42", "{bans}:ends", "{bans}:details"}
        assert await fleet.client.get("bot:ratelimit:ban:42") == b"9"
        assert 3_590_000 < await fleet.client.pttl("bot:ratelimit:ban:42") <= 3_600_000


async def test_an_update_is_one_strike(limiter: Limiter) -> None:
    """One refused update is one strike, whether the guard or the inner middleware refused it."""
    strict = {"limit": "1/m", "key": "strict"}
    bot = limited("2/m", limiter=limiter, penalty=PENALTY, guard=True, flag=strict)
    assert await bot.send(*"abc") == [True, False, False]  # free, by the handler, by the guard
    assert (await limiter.peek(PENALTY, ANNA)).remaining == 1


async def test_banned_users(limiter: Limiter, clock: Clock) -> None:
    """The next notice and every button press tell how long the ban of a penalty lasts.

    Users who are banned by hand are told nothing; their buttons lose the spinner without a text.
    Telegram's client keeps the answer for 30 s only, so that lifting the ban frees the buttons.
    """
    middleware = RateLimitMiddleware("1/s", limiter=limiter, penalty=PENALTY)
    bot = Instance(middleware, ["message", "callback_query"])
    await bot.send(*"abcd")
    clock.move(1)
    await bot.send(*"abcd")
    await bot.feed(callback_query=callback())
    waits = ["1 s", "1 h", "1 h"]
    assert [each.text.rpartition("in ")[2].rstrip(".") for each in bot.session.requests] == waits
    assert sum(isinstance(each, SendMessage) for each in bot.session.requests) == 2
    await limiter.ban(Subject(user=43))
    by_hand = {"from": user(43)}
    assert await bot.send(*"ab", **by_hand) == [False, False]
    await bot.feed(callback_query=callback(**by_hand))
    penalized, banned = bot.session.requests[2:]
    assert (penalized.cache_time, banned.cache_time, banned.text) == (30, 30, None)


def test_the_start_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    """The log says where counts are kept, in the words that operators search for.

    No event loop runs yet: a bot is built before, and a constructor does no I/O.
    """
    caplog.set_level(logging.INFO, "bot_ratelimit")
    RateLimitMiddleware(1.0, FakeAsyncRedis(server=FakeServer()), "booking_bot:client1")
    RateLimitMiddleware("1/s; 20/minute sliding")
    RateLimitMiddleware("1/s", limiter=Limiter(MemoryStorage()))
    RateLimitMiddleware.from_settings(Settings(redis_enabled=False), rate_limit=None)
    using, missing, chosen, disabled, again = caplog.records
    assert (using.levelname, missing.levelname, chosen.levelname) == ("INFO", "WARNING", "INFO")
    assert using.message == (
        "RateLimitMiddleware: Using Redis for distributed rate limiting "
        "(limit: 1/s per user; key prefix: booking_bot:client1)"
    )
    no_redis = "RateLimitMiddleware: Redis not provided, using in-memory cache"
    assert missing.message.startswith(no_redis)
    assert "This will NOT work correctly in multi-instance deployment" in missing.message
    assert "20/minute sliding" in missing.message
    assert "counting in this process" in chosen.message
    assert "disabled by REDIS_ENABLED=false" in disabled.message
    assert again.message.startswith(f"{no_redis} (limit: only of handlers)")


GIVEN = Limiter(MemoryStorage())


@table(
    ("arguments", "message"),
    [
        ({"rate_limit": "fast"}, "'fast'"),
        ({"redis_client": redis.Redis()}, "a redis.asyncio.Redis"),
        ({"key_prefix": "my bot"}, "key_prefix='my bot'"),
        ({"on_limited": Notices}, "on_limited="),
        ({"on_limited": lambda event: None}, "takes (event): expected a function of (event, dec"),
        ({"exempt": lambda event: True}, "takes (event): expected a function of (event, data)"),
        ({"rate_limit": {"limit": "5/m"}}, "rate_limit={'limit': '5/m'}: expected a limit such as"),
        ({"rate_limit": [Rule("1/m"), Concurrency(1)]}, "does not count events: give it to a hand"),
        *(({"penalty": each}, "expected Penalty(") for each in ("9/m", Rule("1/m"), [PENALTY])),
        ({"redis_client": aioredis.Redis(), "limiter": GIVEN}, "redis_client and limiter"),
        ({"limiter": GIVEN, "on_error": "deny"}, "on_error and limiter"),
        ({"limiter": GIVEN, "observer": Observer()}, "observer and limiter"),
        ({"limiter": MemoryStorage()}, "limiter is a MemoryStorage: expected Limiter(storage)"),
        ({"limiter": aioredis.Redis(password="hunter2")}, "goes into redis_client"),
        ({"per_bot": "no"}, "per_bot='no'"),
    ],
)
def test_an_invalid_argument_is_named(arguments: dict[str, Any], message: str) -> None:
    """An invalid argument stops the bot at its start, with a message and without secrets."""
    with pytest.raises(ConfigError) as error:
        RateLimitMiddleware(**arguments)
    assert message in str(error.value)
    assert "hunter2" not in str(error.value)


async def test_from_the_environment(
    environment: pytest.MonkeyPatch, redis_server: Server, client: aioredis.Redis
) -> None:
    """`from_settings` takes limit, server, prefix, policy and exemptions from the environment."""
    for name, value in {
        "REDIS_URL": redis_server.url,
        "REDIS_KEY_PREFIX": "booking_bot:client1",
        "RATE_LIMIT": "2/m",
        "RATE_LIMIT_ON_ERROR": "memory",
        "RATE_LIMIT_TIMEOUT": "1.5",
        "RATE_LIMIT_EXEMPT": "43, -100",
    }.items():
        environment.setenv(name, value)
    middleware = RateLimitMiddleware.from_settings(limiter=None)  # the same as no argument
    assert (middleware.limiter.on_error, middleware.limiter.timeout) == ("memory", 1.5)
    bot = Instance(middleware)
    assert await bot.send(*"abc") == [True, True, False]
    assert await bot.send(*"abc", **{"from": user(43)}) == [True] * 3
    assert await client.get("booking_bot:client1:ratelimit:42") == b"3"
    await middleware.close()


async def test_arguments_win_over_the_environment(environment: pytest.MonkeyPatch) -> None:
    """Every argument of the constructor can be given to `from_settings`, and wins.

    A limiter that was given stays open: another bot may use it.
    """
    environment.setenv("REDIS_URL", f"redis://127.0.0.1:{free_port()}")
    environment.setenv("RATE_LIMIT", "9/m")
    options: dict[str, Any] = {"rate_limit": "1/m", "key_prefix": "mine", "statistics": True}
    recorder = Recorder()
    async with FakeAsyncRedis(server=FakeServer()) as client:
        options |= {"redis_client": client, "observer": recorder}
        middleware = RateLimitMiddleware.from_settings(**options)
        assert middleware.limiter.keeps_statistics
        assert await Instance(middleware).send(*"ab") == [True, False]
        assert b"mine:ratelimit:42" in await client.keys()
    assert len(recorder.named("decided")) == 2
    storage = FlakyStorage()
    given = RateLimitMiddleware.from_settings(limiter=Limiter(storage))
    assert given.rules == (Rule("9/m"),)
    bot = Instance(given)
    assert await bot.send("a") == [True]
    await bot.dispatcher.emit_shutdown()
    assert (storage.calls > 0, storage.closed) == (True, False)
    with pytest.raises(ConfigError, match="settings is a str: expected Settings"):
        RateLimitMiddleware.from_settings("redis://h")  # type: ignore[arg-type] # the mistake


async def test_the_memory_size_applies_with_a_client_too(environment: pytest.MonkeyPatch) -> None:
    """RATE_LIMIT_MEMORY_SIZE also bounds the standby memory of a client that is given."""
    environment.setenv("RATE_LIMIT_MEMORY_SIZE", "1")
    environment.setenv("RATE_LIMIT_ON_ERROR", "memory")
    for client in (None, aioredis.Redis(port=free_port())):
        limiter = RateLimitMiddleware.from_settings(redis_client=client).limiter
        for id_ in (1, 2, 1):  # the second one takes the place of the first
            assert (await limiter.hit("1/h", Subject(user=id_))).allowed


def test_a_limiter_together_with_its_own_arguments(environment: pytest.MonkeyPatch) -> None:
    """`from_settings` never ignores a policy silently, neither an argument nor a variable."""
    limiter = Limiter(MemoryStorage(), key_prefix="shop", on_error="deny", timeout=1)
    for name, given, variable in (
        ("on_error", "allow", "RATE_LIMIT_ON_ERROR"),
        ("timeout", 0.5, "RATE_LIMIT_TIMEOUT"),
        ("key_prefix", "mine", "REDIS_KEY_PREFIX"),
    ):
        with pytest.raises(ConfigError, match=f"{name} and limiter are both given"):
            RateLimitMiddleware.from_settings(limiter=limiter, **{name: given})
        environment.setenv(variable, str(given))
        with pytest.raises(ConfigError, match=f"{variable}=.* and a limiter with {name}="):
            RateLimitMiddleware.from_settings(limiter=limiter)
        environment.setenv(variable, str(getattr(limiter, name)))
        assert RateLimitMiddleware.from_settings(limiter=limiter).limiter is limiter


async def test_shutdown_closes_the_client_of_from_settings(
    redis_server: Server, connected: Any
) -> None:
    """It is closed with the dispatcher, without code in the bot, however often it was set up."""
    settings = Settings(redis_url=f"{redis_server.url}?client_name=ours", rate_limit_timeout=5)
    middleware, bot = RateLimitMiddleware.from_settings(settings), bare()
    before = len(bot.dispatcher.shutdown.handlers)
    for _ in range(3):
        middleware.setup(listen(bot, "message").dispatcher, guard=True)
    assert len(bot.dispatcher.shutdown.handlers) == before + 1
    for _ in range(2):  # a dispatcher may be started again
        await bot.send("hello")
        await connected(1)
        await bot.dispatcher.emit_shutdown()
        await connected(0)


async def test_a_given_client_stays_open(redis_server: Server, connected: Any) -> None:
    """Only the limiter's own connection is closed with the bot, which still decides after it.

    With `setup` it is opened at the start, so the first update need not wait; nothing is charged.
    """
    async with aioredis.Redis(port=redis_server.port, client_name="ours") as client:
        await client.flushall()
        bot = listen(bare(), "message")
        RateLimitMiddleware("1/m", client).setup(bot.dispatcher)
        mine = await client.client_id()
        await connected(1)
        await bot.dispatcher.emit_startup()
        await connected(2)
        assert await client.keys("*") == []
        assert await bot.send("hello") == [True]
        await bot.dispatcher.emit_shutdown()
        await connected(1)
        assert await client.client_id() == mine
        assert await bot.send("late") == [False]
