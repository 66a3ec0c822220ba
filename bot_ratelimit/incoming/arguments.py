"""Arguments of the middleware: their checks, and which of them exclude each other."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Mapping
from typing import TYPE_CHECKING, Any, TypeAlias

from aiogram.types import TelegramObject

from bot_ratelimit.errors import ConfigError
from bot_ratelimit.incoming.notices import Notices
from bot_ratelimit.limiter.decision import Decision
from bot_ratelimit.limiter.limiter import Limiter
from bot_ratelimit.rules.concurrency import Concurrency
from bot_ratelimit.rules.rule import Rules
from bot_ratelimit.storage.base import Storage
from bot_ratelimit.storage.memory import MemoryStorage
from bot_ratelimit.storage.redis.storage import RedisStorage

if TYPE_CHECKING:
    from bot_ratelimit.storage.redis.driver import Client

log = logging.getLogger("bot_ratelimit")

OnLimited: TypeAlias = Callable[[TelegramObject, Decision, dict[str, Any]], "Awaitable[Any] | Any"]


class DefaultPrefix(str):
    """The default of `key_prefix`, which differs from the same text given beside `limiter`."""

    __slots__ = ()


class DefaultNames(frozenset[str]):
    """The default of `never_refuse`; signatures show its name, not its 80 items."""

    __slots__ = ()

    def __repr__(self) -> str:
        return "NEVER_REFUSED"


def notices_of(
    on_limited: Notices | str | Mapping[str, str] | OnLimited | None,
) -> Notices | OnLimited | None:
    """Return what notifies refused users.

    Raises:
        ConfigError: It is neither texts, nor `Notices`, nor a function, nor None.
    """
    if isinstance(on_limited, (str, Mapping)):
        return Notices(on_limited)
    if on_limited is None or isinstance(on_limited, Notices):
        return on_limited
    if callable(on_limited) and not isinstance(on_limited, type):
        return on_limited
    raise ConfigError(
        f"on_limited={on_limited!r}: expected a text, texts by language, Notices(...), "
        "a function of (event, decision, data), or None"
    )


def check_rules(rules: Rules) -> Rules:
    """Return the rules of a middleware, none of which may be a Concurrency.

    Raises:
        ConfigError: One of them is.
    """
    for rule in rules:
        if isinstance(rule, Concurrency):
            raise ConfigError(
                f"rate_limit: {str(rule)!r} does not count events: give it to a handler, "
                "@flags.rate_limit(concurrent=1)"
            )
    return rules


def describe_type(value: object) -> str:
    """Describe the type of a value for an error: `a Redis`, or `the class Redis`."""
    return f"the class {value.__name__}" if isinstance(value, type) else f"a {type(value).__name__}"


def check_limiter(limiter: Limiter, **others: object) -> None:
    """Raise ConfigError unless this is a limiter and no argument is given that it already has."""
    if not isinstance(limiter, Limiter):
        raise ConfigError(
            f"limiter is {describe_type(limiter)}: expected Limiter(storage); "
            "a Redis client goes into redis_client"
        )
    if given := [name for name, value in others.items() if value is not None]:
        raise ConfigError(
            f"{' and '.join(given)} and limiter are both given: give them to the limiter, "
            "Limiter(storage, key_prefix=..., on_error=..., timeout=..., observer=...)"
        )


def storage_for(client: Client | str | None, memory_size: int = 10_000) -> Storage:
    """Return the storage of a client or URL of Redis, or without one of this process."""
    return MemoryStorage(memory_size) if client is None else RedisStorage(client)


def announce(limiter: Limiter, rules: Rules) -> None:
    """Log where counts are kept, in the words that operators search for."""
    limits = "; ".join(map(str, rules))
    if limiter.storage.source == "redis":
        log.info(
            "RateLimitMiddleware: Using Redis for distributed rate limiting "
            "(limit: %s; key prefix: %s)",
            limits,
            limiter.key_prefix,
        )
    else:
        log.warning(
            "RateLimitMiddleware: Redis not provided, using in-memory cache (limit: %s). "
            "This will NOT work correctly in multi-instance deployment",
            limits,
        )
