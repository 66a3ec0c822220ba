"""RateLimitMiddleware from its constructor to the dispatcher's shutdown."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
import redis
import redis.asyncio as aioredis
from aiogram import Dispatcher
from fakeredis import FakeAsyncRedis, FakeServer

from bot_ratelimit import (
    ConfigError,
    Limiter,
    MemoryStorage,
    Notices,
    Observer,
    RateLimitMiddleware,
    Rule,
    Settings,
)
from bot_ratelimit.storage.base import Ask
from bot_ratelimit.testing import FlakyStorage
from tests.benches import charge
from tests.servers import Server, free_port

from .support import Instance


def test_the_start_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    """The log says where counts are kept, in the words that operators search for."""
    caplog.set_level(logging.INFO, "bot_ratelimit")
    client = FakeAsyncRedis(server=FakeServer())
    RateLimitMiddleware(1.0, client, "booking_bot:client1")
    RateLimitMiddleware("1/s; 20/minute sliding")
    using, missing = caplog.records
    assert using.levelname == "INFO"
    assert using.message == (
        "RateLimitMiddleware: Using Redis for distributed rate limiting "
        "(limit: 1/s per user; key prefix: booking_bot:client1)"
    )
    assert missing.levelname == "WARNING"
    assert missing.message.startswith(
        "RateLimitMiddleware: Redis not provided, using in-memory cache"
    )
    assert "This will NOT work correctly in multi-instance deployment" in missing.message
    assert "20/minute sliding" in missing.message


def test_the_constructor_does_no_io() -> None:
    """A bot is built before its event loop runs, and starts while Redis is down."""
    RateLimitMiddleware(1.0, aioredis.Redis(port=free_port()))


@pytest.mark.parametrize(
    ("arguments", "message_"),
    [
        ({"rate_limit": "fast"}, "'fast'"),
        ({"rate_limit": []}, "at least one rule"),
        ({"redis_client": redis.Redis()}, "a redis.asyncio.Redis"),
        ({"redis_client": object()}, "a redis.asyncio.Redis"),
        ({"key_prefix": "my bot"}, "key_prefix='my bot'"),
        ({"on_error": "open"}, "on_error='open'"),
        ({"timeout": 0}, "timeout=0"),
        ({"on_limited": 5}, "on_limited=5"),
        (
            {"redis_client": aioredis.Redis(), "limiter": Limiter(MemoryStorage())},
            "redis_client and limiter",
        ),
        ({"limiter": Limiter(MemoryStorage()), "on_error": "deny"}, "on_error and limiter"),
        ({"limiter": Limiter(MemoryStorage()), "timeout": 0.25}, "timeout and limiter"),
        ({"limiter": Limiter(MemoryStorage()), "key_prefix": "mine"}, "key_prefix and limiter"),
        ({"limiter": Limiter(MemoryStorage()), "observer": Observer()}, "observer and limiter"),
        ({"limiter": Limiter(MemoryStorage()), "statistics": True}, "statistics and limiter"),
        ({"limiter": MemoryStorage()}, "limiter is a MemoryStorage: expected Limiter(storage)"),
        ({"limiter": Limiter}, "limiter is the class Limiter"),
        ({"limiter": aioredis.Redis(password="hunter2")}, "goes into redis_client"),
        ({"on_limited": Notices}, "on_limited="),
        ({"per_bot": "no"}, "per_bot='no'"),
        ({"once_per_update": 1}, "once_per_update=1"),
    ],
    ids=lambda value: ",".join(value) if isinstance(value, dict) else "",
)
def test_an_invalid_argument_is_named(arguments: dict[str, Any], message_: str) -> None:
    """An invalid argument stops the bot at its start, with a message and without secrets."""
    with pytest.raises(ConfigError) as error:
        RateLimitMiddleware(**arguments)
    assert message_ in str(error.value)
    assert "hunter2" not in str(error.value)


async def test_from_the_environment(
    environment: pytest.MonkeyPatch, redis_server: Server, client: aioredis.Redis
) -> None:
    """`from_settings` takes limit, server, prefix and policy from the environment."""
    for name, value in {
        "REDIS_URL": redis_server.url,
        "REDIS_KEY_PREFIX": "booking_bot:client1",
        "RATE_LIMIT": "2/m",
        "RATE_LIMIT_ON_ERROR": "memory",
        "RATE_LIMIT_TIMEOUT": "1.5",
    }.items():
        environment.setenv(name, value)
    middleware = RateLimitMiddleware.from_settings()
    assert (middleware.limiter.on_error, middleware.limiter.timeout) == ("memory", 1.5)
    assert await Instance(middleware).send(*"abc") == [True, True, False]
    assert await client.get("booking_bot:client1:ratelimit:42") == b"3"
    await middleware.close()


async def test_arguments_win_over_the_environment(environment: pytest.MonkeyPatch) -> None:
    """Every argument of the constructor can be given to `from_settings`, and wins."""
    environment.setenv("REDIS_URL", f"redis://127.0.0.1:{free_port()}")
    environment.setenv("RATE_LIMIT", "9/m")
    async with FakeAsyncRedis(server=FakeServer()) as client:
        bot = Instance(
            RateLimitMiddleware.from_settings(
                rate_limit="1/m", redis_client=client, key_prefix="mine", on_limited=None
            )
        )
        assert await bot.send(*"ab") == [True, False]
        assert await client.keys() == [b"mine:ratelimit:42"]
        assert bot.session.requests == []
    given = Limiter(MemoryStorage())
    assert RateLimitMiddleware.from_settings(limiter=given).limiter is given
    assert RateLimitMiddleware.from_settings(Settings(redis_enabled=False), timeout=1).rules == (
        Rule("9/m"),
    )


@pytest.mark.parametrize("given", [None, aioredis.Redis()], ids=["memory", "redis"])
async def test_the_memory_size_applies_with_a_client_too(
    environment: pytest.MonkeyPatch, given: aioredis.Redis | None
) -> None:
    """RATE_LIMIT_MEMORY_SIZE also bounds the standby memory of a client that is given."""
    environment.setenv("RATE_LIMIT_MEMORY_SIZE", "1")
    environment.setenv("RATE_LIMIT_ON_ERROR", "memory")
    limiter = RateLimitMiddleware.from_settings(redis_client=given).limiter
    storage = limiter.storage if given is None else limiter.decider.standby
    assert isinstance(storage, MemoryStorage)
    assert len(storage._states) == 0
    for user in range(3):
        storage.answer(Ask([charge("2/h", f"{user}")]))
    assert len(storage._states) == 1


@pytest.mark.parametrize("subject", ["42", None, 4.2, True])
async def test_reset_of_a_wrong_type(subject: Any) -> None:
    """Anything but an id or a Subject is an error that says what is expected."""
    with pytest.raises(ConfigError, match=r"reset: .* is not a user: pass an id"):
        await RateLimitMiddleware("1/s").reset(subject)


@pytest.mark.parametrize("name", ["on_error", "timeout", "key_prefix"])
def test_a_limiter_together_with_its_own_arguments(
    environment: pytest.MonkeyPatch, name: str
) -> None:
    """`from_settings` never ignores a policy silently, neither an argument nor a variable."""
    limiter = Limiter(MemoryStorage(), key_prefix="shop", on_error="deny", timeout=1)
    given = {"on_error": "allow", "timeout": 0.5, "key_prefix": "mine"}[name]
    with pytest.raises(ConfigError, match=f"{name} and limiter are both given"):
        RateLimitMiddleware.from_settings(limiter=limiter, **{name: given})
    variable = "REDIS_KEY_PREFIX" if name == "key_prefix" else f"RATE_LIMIT_{name.upper()}"
    environment.setenv(variable, str(given))
    with pytest.raises(ConfigError, match=f"{variable}=.* and a limiter with {name}="):
        RateLimitMiddleware.from_settings(limiter=limiter)
    environment.setenv(variable, str(getattr(limiter, name)))
    assert RateLimitMiddleware.from_settings(limiter=limiter).limiter is limiter


async def test_limiter_none_means_the_one_of_the_settings(
    environment: pytest.MonkeyPatch, redis_server: Server
) -> None:
    """`limiter=None` is the same as no argument: the server of the settings is used."""
    environment.setenv("REDIS_URL", redis_server.url)
    middleware = RateLimitMiddleware.from_settings(limiter=None)
    assert middleware.limiter.storage.source == "redis"
    await middleware.close()
    with pytest.raises(ConfigError, match="settings is a str: expected Settings"):
        RateLimitMiddleware.from_settings("redis://h")  # type: ignore[arg-type] # the mistake


@pytest.mark.usefixtures("environment")
async def test_shutdown_closes_the_client_of_from_settings(
    redis_server: Server, connected: Callable[[int], Awaitable[None]]
) -> None:
    """A client made by `from_settings` is closed with the dispatcher, without code in the bot."""
    settings = Settings(redis_url=f"{redis_server.url}?client_name=ours")
    bot = Instance(RateLimitMiddleware.from_settings(settings))
    for _ in range(2):  # a dispatcher may be started again
        await bot.send("hello")
        await connected(1)
        await bot.dispatcher.emit_shutdown()
        await connected(0)


@pytest.mark.parametrize("closing", ["shutdown", "close"])
async def test_a_given_client_stays_open(
    redis_server: Server, connected: Callable[[int], Awaitable[None]], closing: str
) -> None:
    """Only the limiter's own connection is closed with the bot, not a client that was given."""
    async with aioredis.Redis(port=redis_server.port, client_name="ours") as client:
        middleware = RateLimitMiddleware("1/m", client)
        bot = Instance(middleware)
        await bot.send("hello")
        mine = await client.client_id()
        await connected(2)
        await (bot.dispatcher.emit_shutdown() if closing == "shutdown" else middleware.close())
        await connected(1)
        assert await client.client_id() == mine


async def test_a_given_limiter_stays_open() -> None:
    """A limiter that was given may be used by another bot or a background job."""
    storage = FlakyStorage()
    bot = Instance(RateLimitMiddleware("1/m", limiter=Limiter(storage)))
    await bot.send("hello")
    await bot.dispatcher.emit_shutdown()
    assert not storage.closed
    assert await bot.send("hello") == [False]


async def test_limits_work_after_the_shutdown(client: aioredis.Redis) -> None:
    """Updates in progress are still decided, and all updates after a restart."""
    bot = Instance(RateLimitMiddleware("1/m", client))
    await bot.send("hello")
    await bot.dispatcher.emit_shutdown()
    assert await bot.send("late", "later") == [False, False]


async def test_the_connection_is_opened_when_the_bot_starts(
    client: aioredis.Redis, redis_server: Server, connected: Callable[[int], Awaitable[None]]
) -> None:
    """With `setup` the first update need not wait for the connection; nothing is charged."""
    dispatcher = Dispatcher()
    given = aioredis.Redis(port=redis_server.port, client_name="ours")
    RateLimitMiddleware("1/m", given).setup(dispatcher)
    await connected(0)
    await dispatcher.emit_startup()
    await connected(1)
    assert await client.keys("*") == []
    await dispatcher.emit_shutdown()
    await connected(0)
